"""The page of a published ablation: Markdown with the question, the table, the figures, and the conclusion of the report. No torch."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from sddit.ablations.analysis.diagnostics import Logs, environments
from sddit.ablations.analysis.results import AblationResults
from sddit.ablations.analysis.statistics import summarize
from sddit.ablations.analysis.table import (
    comparisons,
    family_size,
    floors_of,
    format_changes,
    format_comparison,
    format_summary,
    metric_title,
)
from sddit.errors import printable
from sddit.formatting import format_duration
from sddit.interfaces.metric_names import metric_of
from sddit.reports.ablation.caveats import Caution, cautions
from sddit.reports.ablation.conclusions import Compared, fairness, findings, summary
from sddit.reports.ablation.phrases import floors_sentence, format_arms, interval_note
from sddit.reports.ablation.report import COST, PROBED, TARGET, cost, facts, how_soon, probed, what_differs

BY_THE_TOOL = (
    "Made by `sddit-run publish` from the runs: the words, too, follow from the numbers. "
    "[report.html](report.html) says more; it opens in any browser, from a copy on disk."
)
BESIDE = """\
[results.jsonl](results.jsonl) has a row for each run, with all digits: its scores; where they were followed while training, its
`curves` (pairs of a step and a score) and the steps and FLOPs after which it `reached` each target (null: never); where it was probed,
its `probe`: accuracies with a row for each noise level and a column for each block. [curves.csv](curves.csv) has what each arm logged,
as mean and one standard deviation to each side over seeds; [plan.json](plan.json) what was planned; [environment.json](environment.json) the
versions; `recipes/` the whole recipe of each arm at its first seed, which `sddit-run` takes as any other. A rerun compares itself
with this folder where the recipe has `[ablation] published`."""


@dataclass(frozen=True, slots=True)
class ChartFile:
    """An image file that the page shows."""

    file: str
    title: str


def readme(results: AblationResults, logs: Logs, figures: Sequence[ChartFile], samples: Mapping[str, str]) -> str:
    """The page.

    Args:
        results: of the ablation.
        logs: of its runs.
        figures: charts, those over several axes one after the other.
        samples: arm by the file of its samples.
    """
    compared = {metric: comparisons(results, metric) for metric in results.plan.metrics}
    found = cautions(results, logs)
    parts = (
        head(results),
        came_out(results, compared, found),
        believe(results, found),
        the_table(results, compared),
        the_targets(results, logs),
        the_cost(results),
        fair(results, compared, found),
        the_probe(results),
        the_figures(figures),
        the_samples(results, samples),
        made_with(results),
    )
    return "\n".join(line for part in parts for line in part).rstrip() + "\n"


def head(results: AblationResults) -> Iterator[str]:
    """Question and command."""
    plan = results.plan
    yield f"# {plain(plan.name)}"
    yield ""
    if plan.question:
        yield f"**{plain(plan.question)}**"
        yield ""
    yield BY_THE_TOOL
    yield ""
    yield "```sh"
    yield printable(plan.command)
    yield "```"
    yield ""


def came_out(results: AblationResults, compared: Compared, found: Sequence[Caution]) -> Iterator[str]:
    """The conclusion, as the report has it."""
    yield from heading("What came out")
    for sentence in summary(results, compared, found):
        yield f"{plain(sentence)}\n"
    for finding in findings(results, compared, found):
        doubts = f" **Doubtful: {plain(', '.join(finding.doubts))}.**" if finding.doubts else ""
        yield f"- **{plain(finding.arm)}** against {plain(finding.baseline)}: {plain(finding.words)}.{doubts}"
        yield from (f"  - {plain(detail)}" for detail in finding.details)
    yield ""


def believe(results: AblationResults, found: Sequence[Caution]) -> Iterator[str]:
    """The cautions, as the report has them."""
    if not found:
        return
    yield from heading("Before you believe it")
    for caution in found:
        some = caution.arms and len(caution.arms) < len(results.plan.arms)
        where = f" in {plain(format_arms(results.plan, caution.arms))}" if some else ""
        yield f"- **{plain(caution.cause)}**{where}: {plain(caution.text)}"
    yield ""


def the_table(results: AblationResults, compared: Compared) -> Iterator[str]:
    """An arm a line: every metric, and how far it is from the baseline."""
    yield from heading("The arms")
    names = [f"{metric_title(metric)} ({metric_of(metric).better} is better)" for metric in compared]
    rows = []
    for arm in results.plan.arms:
        row = [f"**{plain(arm.label)}**"]
        for metric, found in compared.items():
            values = list(results.figure(arm.label, metric).values())
            beside = "baseline" if arm.is_baseline else format_comparison(found[arm.label])
            row.append(f"{format_summary(summarize(values))}<br>{plain(beside)}" if values else "none")
        finished = sum(one.status == "finished" for one in results.of(arm.label))
        rows.append([*row, f"{finished} of {len(results.of(arm.label))}", f"`{code(format_changes(arm.changes))}`"])
    yield from table(["arm", *names, "runs", "changes"], rows)
    for words in filter(None, (floors_sentence(floors_of(results)), interval_note(family_size(compared)))):
        yield f"{plain(words)}\n"
    if settings := list(what_differs(results)):
        yield "Every setting by which an arm differs from its baseline:\n"
        for label, baseline, keys in settings:
            yield f"- **{plain(label)}** against {plain(baseline)}: {', '.join(each_setting(keys))}"
        yield ""


def each_setting(keys: Sequence[tuple[str, str, str]]) -> Iterator[str]:
    """Each setting, old → new; all those of a loss that only one side has stand together, behind its name."""
    alone = [
        key.removesuffix(".name")
        for key, *values in keys
        if re.fullmatch(r"loss\.[^.]+\.name", key) and "none" in values
    ]
    for term, some in groupby(keys, lambda one: next((term for term in alone if one[0].startswith(f"{term}.")), "")):
        if not term:
            yield from (f"`{code(key)}` {plain(theirs)} → {plain(own)}" for key, theirs, own in some)
            continue
        told = [(key.removeprefix(f"{term}."), theirs, own) for key, theirs, own in some]
        added = told[0][1] == "none"
        whole = f"({', '.join(f'{plain(key)} {plain(own if added else theirs)}' for key, theirs, own in told)})"
        yield f"`{code(term)}` none → {whole}" if added else f"`{code(term)}` {whole} → none"


def the_targets(results: AblationResults, logs: Logs) -> Iterator[str]:
    """After how many steps and FLOPs each arm was where the baseline ended, for metrics that were followed."""
    found = {metric: list(how_soon(results, logs, metric)) for metric in results.plan.metrics}
    if not any(found.values()):
        return
    yield from heading("How soon")
    yield f"{TARGET}\n"
    names = ("target", "runs that got there", "steps", "beside the baseline", "training FLOPs", "beside the baseline")
    keys = ("arm", "target", "runs", "steps", "of_baseline", "flops", "flops_of_baseline")
    for metric, rows in found.items():
        if rows:
            yield from table([metric_title(metric), *names], [[plain(row[key]) for key in keys] for row in rows])


def the_cost(results: AblationResults) -> Iterator[str]:
    """What each arm took."""
    yield from heading("Cost")
    yield from table(COST, [[plain(text) for text in row] for row in cost(results)])
    spent = sum(row.seconds for row in results.runs)
    yield f"Training of all {len(results.runs)} runs: {format_duration(spent)}, as the runs' own clocks count it."
    yield ""


def fair(results: AblationResults, compared: Compared, found: Sequence[Caution]) -> Iterator[str]:
    """The questions of a reader who knows the field."""
    yield from heading("Is the comparison fair?")
    for answer in fairness(results, compared, found):
        word = "" if answer.good is None else " yes." if answer.good else " no."
        yield f"- **{plain(answer.question)}**{word} {plain(answer.words)}"
    yield ""


def the_probe(results: AblationResults) -> Iterator[str]:
    """What the tokens of each arm tell of the class, where the runs were probed."""
    if (found := probed(results)) is None:
        return
    yield from heading("What the tokens tell of the class")
    yield f"{PROBED} Chance is {found.chance:.3g}, the network as it was initialised gets {found.untrained}."
    yield ""
    names = ("arm", "seeds", "linear probe", "nearest neighbours", "linear probe beside the baseline")
    yield from table(names, [[plain(text) for text in row] for row in found.rows])


def the_figures(figures: Sequence[ChartFile]) -> Iterator[str]:
    """Every picture, two beside each other: the same curve over steps and over FLOPs."""
    if not figures:
        return
    yield from heading("Figures")
    yield "Means over seeds, in bands of one standard deviation to each side."
    yield ""
    pairs = [figures[start : start + 2] for start in range(0, len(figures), 2)]
    yield from table(["", ""], [[picture(one) for one in pair] + [""] * (2 - len(pair)) for pair in pairs])


def the_samples(results: AblationResults, samples: Mapping[str, str]) -> Iterator[str]:
    """Grids of all arms at one seed."""
    if not samples:
        return
    yield from heading("Samples")
    yield "At one seed, not chosen: the same place has the same class and the same noise in every arm of equal seed."
    yield ""
    cells = [f"{picture(ChartFile(file, f'samples of {arm}'))}<br>{plain(arm)}" for file, arm in samples.items()]
    rows = [cells[start : start + 3] for start in range(0, len(cells), 3)]
    yield from table(["", "", ""], [row + [""] * (3 - len(row)) for row in rows])


def made_with(results: AblationResults) -> Iterator[str]:
    """The plan, the versions, and what lies beside the page."""
    yield from heading("Plan and versions")
    named = [(name, value) for name, value in facts(results) if name != "CPU threads of a run"]
    machine = [(key, ", ".join(values)) for key, values in environments(results).items()]
    yield from table(["", ""], [[plain(name), plain(value)] for name, value in (*named, *machine)])
    yield BESIDE


# --------------------------------------------------------------------------------------------------------------------
# Markdown
# --------------------------------------------------------------------------------------------------------------------


def heading(text: str) -> Iterator[str]:
    yield f"## {text}"
    yield ""


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """A table of GitHub's Markdown, of cells that are Markdown already."""
    for line in (headings, ["---"] * len(headings), *rows):
        yield f"| {' | '.join(line)} |"
    yield ""


def picture(figure: ChartFile) -> str:
    return f"![{plain(figure.title)}]({figure.file})"


def plain(text: str) -> str:
    """Text that stands for itself: nothing in it is a mark of Markdown, HTML or a formula."""
    return re.sub(r"[\\`*\[\]<|&$]|(?<!\w)_|_(?!\w)", lambda mark: f"\\{mark[0]}", printable(text))


def code(text: str) -> str:
    """The same between backticks, inside a table."""
    return printable(text).replace("`", "'").replace("|", r"\|")
