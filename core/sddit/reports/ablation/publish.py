"""Publish an ablation: write a folder for a repository, with all that readers and reruns need. No torch, no weights.

README.md          the question, the table, the figures and the conclusions, generated from the numbers
results.jsonl      one row per run, with all digits: its scores, their curves, when it reached the targets, its probe
plan.json, environment.json, recipes/    what was run, and with which versions
figures/, samples/ images
sddit-files.json   the sha256 of each of these files

The same runs give the same bytes. No path of this machine is included.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from sddit.ablations.analysis.diagnostics import Logs, environments
from sddit.ablations.analysis.results import RESULTS, AblationResults, RunOutcome, gather
from sddit.ablations.analysis.targets import first_at, points, reached
from sddit.ablations.planning.records import PLAN, PlanRecord, read_plan
from sddit.errors import SdditError, error
from sddit.formatting import slug
from sddit.interfaces.metric_names import metric_of
from sddit.reports.ablation.ablation_report import contents
from sddit.reports.ablation.probe_table import probe_of
from sddit.reports.ablation.reproduction import RECIPES, first_recipe, shorten_paths, shorten_setting
from sddit.reports.charts import as_file, title_of
from sddit.reports.rendering import render
from sddit.storage.atomic import read_file, to_json
from sddit.storage.output_folder import write_output
from sddit.storage.run_folder import ENVIRONMENT

README, FIGURES, SAMPLES = "README.md", "figures", "samples"
IMAGE = re.compile(rf"\b(?:{FIGURES}|{SAMPLES})/[^/\s()\"<>]+\.(?:svg|png)")
"""A figure or a grid of samples in the page."""
OVER = ("steps", "flops")  # the axes of the figures


def publish(folder: Path, to: Path, *, unfinished: bool = False) -> list[Path]:
    """Write the publication of an ablation.

    Args:
        folder: of the ablation, next to its runs.
        to: a new or empty folder, or one that holds an earlier publication, which is replaced. Other files in it are
            kept.
        unfinished: whether to publish an ablation with missing runs.

    Returns:
        The files that were written.

    Raises:
        SdditError: SD-F710 for an ablation with runs that are missing, or an error of `write_output`.
    """
    results = gather(folder.resolve())
    if not unfinished:
        refuse_unfinished(results)
    written = dict(files(without_local_paths(results)))
    return write_output(to, written, kind="publication", unlisted=files_without_manifest)


def refuse_unfinished(results: AblationResults) -> None:
    """Refuse to publish an ablation with missing runs."""
    missing = [f"{row.arm} seed {row.seed} {row.status}" for row in results.runs if row.status != "finished"]
    if missing or not results.runs:
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        raise error(
            "SD-F710",
            f"{len(missing)} of {len(results.runs)} runs are not finished" if results.runs else "nothing was run yet",
            where=str(results.folder),
            got=", ".join(missing[:5]) + more,
            fix=f"{results.plan.command}   makes them; --unfinished publishes what there is",
        )


def files_without_manifest(to: Path) -> set[str] | None:
    """Return the files of a publication of an earlier version, which has no manifest; None if `to` is not one.

    The folder of an ablation has files of these names, too. Its plan lists runs, so that it is not replaced.
    """
    try:
        plan, page = read_plan(to), read_file(to / README).decode(errors="replace")
    except (SdditError, OSError):
        return None
    if plan.runs is not None or not (to / RESULTS).is_file():
        return None
    recipes = {f"{RECIPES}/{slug(label)}.json" for label in plan.labels}
    return {README, PLAN, RESULTS, ENVIRONMENT} | recipes | set(IMAGE.findall(page))


def without_local_paths(results: AblationResults) -> AblationResults:
    """Return the results without the folders of this machine and without an earlier publication.

    Raises SD-F712 if arms differ by such folders alone: their runs would look like those of one arm.
    """
    labels = results.plan.labels
    if len({shorten_setting(label) for label in labels}) < len(labels):
        raise error(
            "SD-F712",
            "arms would have one name without the folders of their paths",
            where=str(results.folder),
            got=", ".join(label for label in labels if label != shorten_setting(label)),
            expect="names that differ without them",
            fix="name the arms in [ablation.arms]",
        )
    rows = tuple(
        replace(row, arm=shorten_setting(row.arm), error=shorten_error(row.error, results)) for row in results.runs
    )
    plan = replace(
        PlanRecord.from_json(shorten_setting(results.plan.to_json())),
        question=shorten_paths(results.plan.question),
        tuning=shorten_paths(results.plan.tuning),
        published="",
    )
    return replace(results, plan=plan, runs=rows)


def shorten_error(text: str, results: AblationResults) -> str:
    """Return an error message without the folders of this machine."""
    known = {str(folder) for folder in (results.folder.resolve().parent, Path.cwd())}
    with suppress(RuntimeError):  # the user has no home folder
        known.add(str(Path.home()))
    for folder in sorted(known - {"/"}, key=len, reverse=True):
        text = text.replace(f"{folder}/", "")
    return shorten_paths(text)


def files(results: AblationResults) -> Iterator[tuple[str, bytes]]:
    """Yield (name, content) of everything that is published."""
    report = contents(results)
    logs = report["logs"]
    figures = {
        f"{FIGURES}/{slug(title_of(charts[axis]))}-over-{axis}.svg": charts[axis]
        for charts in report["curves"]
        for axis in OVER
    }
    if probe := report["probe"]:
        figures |= {f"{FIGURES}/{slug(title_of(chart))}.svg": chart for chart in probe.charts}
    grids = {f"{SAMPLES}/{slug(grid.arm)}.png": grid for grid in report["samples"] if grid.png}
    yield README, lines(render("ablation_readme.md.j2", **report, figures=figures, grids=grids))
    yield PLAN, lines(to_json(replace(results.plan, runs=None).to_json(), indent=1))
    yield ENVIRONMENT, lines(to_json(environments(results), indent=1))
    targets = {
        metric: {one.arm: one.target for one in reached(results, logs, metric)} for metric in results.plan.metrics
    }
    yield RESULTS, lines(*(to_json(published_row(results, row, logs, targets)) for row in results.runs))
    for label in results.plan.labels:
        recipe = first_recipe(results.folder, results.of(label))  # the others differ from it by their seed
        if recipe is not None:
            yield f"{RECIPES}/{slug(label)}.json", lines(to_json(shorten_setting(recipe), indent=1))
    for name, chart in figures.items():
        yield name, lines(as_file(chart))
    for name, grid in grids.items():
        yield name, grid.png


def lines(*texts: str) -> bytes:
    return "".join(f"{text}\n" for text in texts).encode()


def published_row(
    results: AblationResults, row: RunOutcome, logs: Logs, targets: Mapping[str, Mapping[str, float]]
) -> dict[str, Any]:
    """Return a run without its folder: its scores, and what else the tables of the page need, where it has them.

    Args:
        results: of the ablation.
        row: the run.
        logs: of all runs.
        targets: by metric and arm, where the arm was scored during training.
    """
    own = {key: value for key, value in row.to_json().items() if key != "folder"}
    log = logs[row.arm].get(row.seed, [])
    for metric, of_arms in targets.items():
        curve = points(log, metric)
        if row.arm in of_arms and len(curve) > 1:  # as the table counts them
            step = first_at(curve, of_arms[row.arm], metric_of(metric).better)
            own.setdefault("curves", {})[metric] = curve
            flops = None if step is None else results.plan.arm(row.arm).flops_until(step)
            own.setdefault("reached", {})[metric] = {"target": of_arms[row.arm], "step": step, "flops": flops}
    if probe := probe_of(results.folder / row.folder):
        own["probe"] = probe.to_json()
    return own
