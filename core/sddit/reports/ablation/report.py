"""The report of an ablation: one HTML file that needs no network and runs no script. No torch.

Made of what the folders of its runs hold, each time the command ends; the words are generated from the statistics.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from statistics import mean
from typing import Any

from markupsafe import Markup
from PIL import Image

from sddit.ablations.analysis.diagnostics import Diagnosis, Logs, diagnoses, environments, logs_of
from sddit.ablations.analysis.results import AblationResults, RunOutcome
from sddit.ablations.analysis.statistics import LEVEL, Comparison, Verdict, p_text, summarize
from sddit.ablations.analysis.table import (
    against_baselines,
    comparisons,
    family_size,
    floors_of,
    format_changes,
    format_difference,
    format_summary,
    metric_title,
)
from sddit.ablations.analysis.targets import Relative, reached
from sddit.errors import SdditError
from sddit.evaluation.probe import Probe, read_probe
from sddit.formatting import format_duration, format_number, format_si
from sddit.interfaces.metric_names import metric_of
from sddit.recipes.parsing import quoted
from sddit.reports.ablation.caveats import caveats
from sddit.reports.ablation.conclusions import budget, fairness, findings, summary
from sddit.reports.ablation.curves import AXES, Charts, diagnostic_charts, loss_charts, metric_charts, probe_chart
from sddit.reports.ablation.phrases import comparison_text, floors_sentence, format_arms, interval_note
from sddit.reports.ablation.reproduction import Reproduction, against_published
from sddit.reports.page import render
from sddit.storage.atomic import replace_file
from sddit.storage.run_folder import REPORT

WIDEST = 480  # pixels of a sample grid as it is embedded
BAR = 110  # pixels of the drawing of an interval
PILLS = {"better": "good", "worse": "bad"}
COST = (
    "arm",
    "parameters, sampled",
    "parameters, trained",
    "FLOPs, training image",
    "FLOPs, sampled image",
    "FLOPs, training",
    "steps",
    "images",
    "time",
    "images/s",
    "peak memory",
)


def write_report(results: AblationResults) -> Path:
    """`report.html` in the ablation's folder, whole or not at all."""
    path = results.folder / REPORT
    replace_file(path, page(results).encode())
    return path


def page(results: AblationResults, *, pictures: bool = True) -> str:
    """Return the report as HTML."""
    logs = logs_of(results)
    found = caveats(results, logs)
    compared = {metric: comparisons(results, metric) for metric in results.plan.metrics}
    watched = diagnoses(results, logs)
    reproduction = against_published(results)
    return render(
        "ablation_report.html.j2",
        plan=results.plan,
        status=status(results),
        caveats=found,
        summary=summary(results, compared, found),
        findings=findings(results, compared, found),
        fairness=fairness(results, compared, found),
        metrics=[(metric, metric_title(metric), metric_of(metric).better) for metric in compared],
        overview=list(overview(results, compared)),
        statistics={metric: list(statistics(results, metric, compared[metric])) for metric in compared},
        reached={metric: list(how_soon(results, logs, metric)) for metric in compared},
        cost_headings=COST,
        cost=list(cost(results)),
        axes=AXES,
        curves=curves(results, logs),
        samples=list(samples(results)) if pictures else [],
        diagnosed=list(dict.fromkeys(one.arm for one in watched)),
        diagnostics=by_key(watched),
        diagnostic_charts=diagnostic_charts(results, logs, {one.key: one.monitor for one in watched}),
        probe=probed(results),
        reproduction=reproduction,
        agreements=agreements(reproduction),
        failures=[row for row in results.runs if row.status == "failed"],
        runs=runs(results),
        facts=list(facts(results)),
        environment=[(key, ", ".join(values)) for key, values in environments(results).items()],
        commands=list(commands(results)),
        level=f"{LEVEL:.0%}",
        legend=interval_note(family_size(compared)),
        floors=floors_sentence(floors_of(results)),
        probed_how=PROBED,
        target_rule=TARGET,
        what_differs=list(what_differs(results)),
        format_number=format_number,
        format_arms=format_arms,
    )


def curves(results: AblationResults, logs: Logs) -> list[Charts]:
    """Everything that is drawn over a chosen axis."""
    return [*metric_charts(results, logs), *loss_charts(results, logs)]


def status(results: AblationResults) -> str:
    """`finished`, or how many runs are."""
    finished = sum(row.status == "finished" for row in results.runs)
    return "finished" if results.finished else f"{finished} of {len(results.runs)} runs finished"


# --------------------------------------------------------------------------------------------------------------------
# Tables
# --------------------------------------------------------------------------------------------------------------------


TARGET = (
    "Steps and FLOPs at which a score reached its target, interpolated between the scores taken during training. "
    "Scores before the end "
    "are measured at a learning rate that has not decayed yet. Unless the recipe sets a target, it is the score "
    "that the baseline reached "
    "in every seed. Means are shown only where every seed reached the target; averaging the fast ones alone would "
    "flatter the arm. These "
    "arms are compared as on the metrics, with p-values Holm-corrected for their number."
)


@dataclass(frozen=True, slots=True)
class Cell:
    """A metric of an arm."""

    value: str
    verdict: str  # `baseline`, or the word of its comparison
    pill: str  # the class of that word


def overview(results: AblationResults, compared: Mapping[str, Mapping[str, Comparison]]) -> Iterator[dict[str, Any]]:
    """An arm a line: what changed, every metric with its verdict, what it took."""
    for arm in results.plan.arms:
        rows = results.of(arm.label)
        yield {
            "arm": arm.label,
            "baseline": arm.baseline,
            "changes": format_changes(arm.changes),
            "runs": f"{sum(row.status == 'finished' for row in rows)} of {len(rows)}",
            "flops": format_si(arm.flops),
            "cells": [cell(results, arm.label, metric, compared[metric].get(arm.label)) for metric in compared],
        }


def cell(results: AblationResults, label: str, metric: str, comparison: Comparison | None) -> Cell:
    """One metric of one arm; the baseline is compared with nothing."""
    values = list(results.figure(label, metric).values())
    value = format_summary(summarize(values)) if values else "none"
    verdict = comparison.verdict if comparison else "baseline"
    return Cell(value, verdict.partition(" under ")[0], PILLS.get(verdict, ""))


def statistics(results: AblationResults, metric: str, compared: Mapping[str, Comparison]) -> Iterator[dict[str, Any]]:
    """An arm a line: mean, difference with its interval, p, verdict."""
    reach = max((abs(v) for c in compared.values() for v in (c.low, c.high, c.difference) if v is not None), default=0)
    for arm in results.plan.arms:
        label, comparison = arm.label, compared.get(arm.label)
        number, interval = format_difference(comparison) if comparison else ("", "")
        yield {
            "arm": label,
            "seeds": len(results.figure(label, metric)),
            "cell": cell(results, label, metric, comparison),
            "difference": number,
            "interval": interval,
            "bar": interval_bar(comparison, reach) if comparison else "",
            "p": p_text(comparison.p_holm).removeprefix("p ").removeprefix("= ")
            if comparison and comparison.p_holm is not None
            else "",
        }


def how_soon(results: AblationResults, logs: Logs, metric: str) -> Iterator[dict[str, str]]:
    """An arm a line: when it reached the target of the metric. Nothing where that was not followed."""
    for one in reached(results, logs, metric):
        bound = "at most " if one.at_once else ""
        yield {
            "arm": one.arm,
            "target": format_number(one.target),
            "runs": f"{one.got_there} of {one.runs}",
            "steps": f"{bound}{format_summary(one.steps)}" if one.steps else "" if one.got_there else "never",
            "flops": f"{bound}{format_si(one.flops.mean)}" if one.flops else "",
            "of_baseline": format_relative(one.steps_of_baseline, SOONER),
            "flops_of_baseline": format_relative(one.flops_of_baseline, CHEAPER),
        }


SOONER: Mapping[Verdict, str] = {"better": "sooner", "worse": "later"}
CHEAPER: Mapping[Verdict, str] = {"better": "fewer", "worse": "more"}


def format_relative(one: Relative | None, words: Mapping[Verdict, str]) -> str:
    """`0.83 × sooner (p = 0.013)`; empty where nothing is compared."""
    if one is None:
        return ""
    verdict, p = one.comparison.verdict, one.comparison.p_holm
    word = words.get(verdict, verdict.partition(" under ")[0])
    return f"{one.ratio:.2f} × {word}" + (f" ({p_text(p)})" if p is not None else "")


def interval_bar(comparison: Comparison, reach: float) -> Markup:
    """An interval and zero, drawn on the scale of its metric: -reach to reach."""
    if comparison.difference is None or comparison.low is None or comparison.high is None or not reach:
        return Markup("")
    at = [BAR / 2 * (1 + 0.96 * v / reach) for v in (comparison.low, comparison.high, comparison.difference)]
    return Markup(
        '<svg class="interval {}" viewBox="0 0 {} 14" width="{}" height="14" role="img"><title>{}</title>'
        '<path class="zero" d="M{} 0v14"/><path d="M{:.1f} 7H{:.1f}"/><circle cx="{:.1f}" cy="7" r="3.2"/></svg>'
    ).format(
        PILLS.get(comparison.verdict, ""), BAR, BAR, f"{LEVEL:.0%} interval and zero", BAR // 2, at[0], at[1], at[2]
    )


def cost(results: AblationResults) -> Iterator[list[str]]:
    """An arm a line: what it is and what it took, by formula and by the clock; see `COST`."""
    for arm in results.plan.arms:
        finished = [row for row in results.of(arm.label) if row.status == "finished"]
        memory = [row.peak_memory for row in finished if row.peak_memory is not None]
        speed = [row.images_per_second for row in finished if row.images_per_second is not None]
        yield [
            arm.label,
            format_si(arm.sampled_parameters),
            format_si(arm.parameters),
            format_si(arm.flops_per_step and arm.flops_per_step / arm.batch),
            format_si(arm.sampling_flops_per_image),
            format_si(arm.flops),
            f"{arm.steps:,}",
            f"{arm.images:,}",
            format_duration(mean(row.seconds for row in finished)) if finished else "",
            format_number(mean(speed)) if speed else "",
            format_si(max(memory), "B") if memory else "",
        ]


def by_key(watched: Sequence[Diagnosis]) -> list[tuple[Diagnosis, dict[str, Diagnosis]]]:
    """Each diagnostic, and what it is in the arms that have it."""
    keys: dict[str, dict[str, Diagnosis]] = {}
    for one in watched:
        keys.setdefault(one.key, {})[one.arm] = one
    return [(next(iter(arms.values())), arms) for arms in keys.values()]


def runs(results: AblationResults) -> list[tuple[str, list[RunOutcome]]]:
    """The runs of each arm, seed by seed."""
    return [(arm.label, results.of(arm.label)) for arm in results.plan.arms]


def what_differs(results: AblationResults) -> Iterator[tuple[str, str, list[tuple[str, str, str]]]]:
    """(arm, its baseline, (key, the baseline's value, the arm's)) of every arm that differs from its baseline by a
    setting.
    """
    for arm in results.plan.arms:
        if found := arm.differs:
            yield arm.label, arm.baseline, [(key, value_of(theirs), value_of(own)) for key, theirs, own in found]


def value_of(value: Any) -> str:
    """A value of a recipe as it is typed there; `none` for one that is not set, `a table` for a component."""
    return "none" if value is None else "a table" if isinstance(value, Mapping) else quoted(value)


# --------------------------------------------------------------------------------------------------------------------
# Images
# --------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Grid:
    """The samples of one arm."""

    arm: str
    seed: int
    png: bytes | None  # None: there are none


def samples(results: AblationResults) -> Iterator[Grid]:
    """The last grid of every arm at one seed: the first of those at which most arms have one."""
    arms = [arm.label for arm in results.plan.arms]
    found = {(row.arm, row.seed): path for row in results.runs if (path := last_grid(results.folder / row.folder))}
    if found:
        seed = max(results.plan.seeds, key=lambda seed: sum((arm, seed) in found for arm in arms))
        for arm in arms:
            yield Grid(arm, seed, shrunk(found[arm, seed]) if (arm, seed) in found else None)


def last_grid(run: Path) -> Path | None:
    """Return the newest sample grid of a run."""
    return max((run / "samples").glob("step-*.png"), default=None)


def shrunk(path: Path) -> bytes | None:
    """Return an image, scaled down to the width at which it is shown; None if the file is not an image."""
    try:
        with Image.open(path, formats=["PNG"]) as image:
            scaled = image.convert("RGB")
    except (OSError, ValueError, Image.DecompressionBombError):
        return None
    if scaled.width > WIDEST:
        scaled = scaled.resize((WIDEST, max(1, round(scaled.height * WIDEST / scaled.width))))
    buffer = BytesIO()
    scaled.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


# --------------------------------------------------------------------------------------------------------------------
# The probe
# --------------------------------------------------------------------------------------------------------------------


PROBED = (
    "Accuracy on held-out images at the best depth and noise level. These are chosen on the same images for every "
    "arm, so all accuracies "
    "are optimistic. The probe is shown next to the metrics and is not one of them."
)


@dataclass(frozen=True, slots=True)
class Probed:
    """Class information in the tokens of each arm."""

    rows: Sequence[tuple[str, str, str, str, str]]  # arm, seeds, linear, neighbours, linear compared with the baseline
    charts: Sequence[Markup]
    chance: float
    untrained: str  # the linear probe of a network as it was initialised


def probed(results: AblationResults) -> Probed | None:
    """The probes of the runs that have one; None if there is none."""
    probes: dict[str, dict[int, Probe]] = {arm.label: {} for arm in results.plan.arms}
    for row in results.runs:
        if probe := probe_of(results.folder / row.folder):
            probes[row.arm][row.seed] = probe
    having = {label: list(of_seeds.values()) for label, of_seeds in probes.items() if of_seeds}
    if not having:
        return None
    best = {
        label: {seed: probe.best(probe.linear)[0] for seed, probe in of_seeds.items()}
        for label, of_seeds in probes.items()
    }
    compared = against_baselines(results.plan, best, "higher")
    rows = [
        (
            label,
            str(len(of_arm)),
            format_summary(summarize(list(best[label].values()))),
            format_summary(summarize([probe.best(probe.neighbours)[0] for probe in of_arm])),
            comparison_text(compared[label]) if label in compared else "baseline",
        )
        for label, of_arm in having.items()
    ]
    headings = {"linear": "Linear probe: held-out accuracy", "neighbours": "Nearest neighbours: held-out accuracy"}
    charts = [probe_chart(heading, results, having, which) for which, heading in headings.items()]
    first = next(iter(having.values()))[0]
    return Probed(rows, charts, first.chance, f"{first.best(first.linear_untrained)[0]:.3g}")


def probe_of(run: Path) -> Probe | None:
    """The probe of a run; of a damaged one, none."""
    try:
        return read_probe(run)
    except SdditError:
        return None


# --------------------------------------------------------------------------------------------------------------------
# What was published
# --------------------------------------------------------------------------------------------------------------------


def agreements(reproduction: Reproduction | None) -> list[dict[str, Any]]:
    """A metric of an arm a line: published, here, and whether they agree."""
    return [
        {
            "arm": one.arm,
            "metric": metric_title(one.metric),
            "published": format_summary(one.published),
            "here": format_summary(one.here),
            "identical": f"{one.identical} of {one.compared_runs}",
            "interval": "" if one.low is None or one.high is None else f"{one.low:.2g}, {one.high:.2g}",
            "p": "" if one.p_holm is None else p_text(one.p_holm).removeprefix("p ").removeprefix("= "),
            "cell": Cell("", one.word.partition(" under ")[0], "bad" if one.word == "different" else ""),
        }
        for one in (reproduction.agreements if reproduction else ())
    ]


# --------------------------------------------------------------------------------------------------------------------
# The plan
# --------------------------------------------------------------------------------------------------------------------


def facts(results: AblationResults) -> Iterator[tuple[str, str]]:
    """What was planned."""
    plan = results.plan
    yield "Ablation", f"{plan.name}-{plan.id}"
    yield "Data", plan.data
    yield "Budget", budget(plan.budget)
    yield "Seeds", ", ".join(map(str, plan.seeds))
    yield "Metrics", ", ".join(plan.metrics) or "none"
    yield "Tuning", plan.tuning or "nothing is stated"
    yield (
        "CPU threads of a run",
        "as the recipe says, or torch's choice" if plan.threads is None else str(plan.threads),
    )


def commands(results: AblationResults) -> Iterator[tuple[str, str]]:
    """(what it does, what to type)."""
    folder = results.folder.name if results.folder.is_absolute() else str(results.folder)
    yield "Repeat or continue the ablation:", results.plan.command
    yield "Make every run again, in a folder of its own:", f"{results.plan.command} --no-reuse"
    if results.runs:
        yield "One run of it, such as the first:", f"{results.plan.command} --only {results.runs[0].id}"
    yield "The table in a paper:", f"sddit-run table {folder} --latex"
