"""Publish an ablation: a folder for a repository, with all that a reader and a rerun need. No torch, no weights.

README.md          the question, the table, the figures and the conclusions, generated from the numbers
results.jsonl      one row per run, with all digits: its scores, their curves, when it reached the targets, its probe
plan.json, environment.json, recipes/    what was run, and with which versions
figures/, samples/ images

The same runs give the same bytes. No path of this machine is included.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from markupsafe import Markup

from sddit.ablations.analysis.diagnostics import Logs, environments, logs_of
from sddit.ablations.analysis.results import RESULTS, AblationResults, RunOutcome, gather
from sddit.ablations.analysis.targets import first_at, points, reached
from sddit.ablations.planning.records import PLAN, PlanRecord
from sddit.errors import error
from sddit.formatting import slug
from sddit.interfaces.metric_names import metric_of
from sddit.reports.ablation.ablation_report import curves
from sddit.reports.ablation.probe_table import probe_of, probed
from sddit.reports.ablation.readme import ChartFile, readme
from sddit.reports.ablation.reproduction import RECIPES, first_recipe, pathless, without_paths
from sddit.reports.ablation.sample_grids import samples
from sddit.reports.charts import as_file, title_of
from sddit.storage.atomic import replace_file, storage_errors, to_json
from sddit.storage.run_folder import ENVIRONMENT

README, FIGURES, SAMPLES = "README.md", "figures", "samples"
REPORT, CURVES = "report.html", "curves.csv"  # duplicates that earlier versions published
OVER = ("steps", "flops")  # the axes of the figures


def publish(folder: Path, to: Path, *, unfinished: bool = False) -> list[Path]:
    """Write the publication of an ablation.

    Args:
        folder: of the ablation, next to its runs.
        to: a new or empty folder, or one that holds an earlier publication, which is replaced.
        unfinished: publish also what is not finished.

    Returns:
        The files that were written.

    Raises:
        SdditError: SD-F710 for an ablation with runs that are missing, SD-F711 where `to` holds other files.
    """
    results = gather(folder.resolve())
    if not unfinished:
        refuse_unfinished(results)
    refuse_other(to)
    contents = dict(files(impersonal(results)))
    for name in (FIGURES, SAMPLES, RECIPES):
        for stale in sorted((to / name).glob("*")):
            stale.unlink()
    for name in (REPORT, CURVES):
        (to / name).unlink(missing_ok=True)
    for name, content in contents.items():
        with storage_errors(to / name):
            (to / name).parent.mkdir(parents=True, exist_ok=True)
        replace_file(to / name, content)
    return [to / name for name in contents]


def refuse_unfinished(results: AblationResults) -> None:
    """Refuse to publish an ablation with missing runs, unless requested."""
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


def refuse_other(to: Path) -> None:
    """Replace nothing but a publication."""
    with storage_errors(to):
        held = sorted(path.name for path in to.iterdir()) if to.exists() else []
    if held and not {PLAN, RESULTS} <= set(held):
        raise error(
            "SD-F711",
            "the folder to publish to holds something else",
            where=str(to),
            got=", ".join(held[:5]),
            expect="a new or empty folder, or an earlier publication",
            fix="give another folder",
        )


def impersonal(results: AblationResults) -> AblationResults:
    """Return the results without the folders of this machine and without an earlier publication.

    Raises SD-F712 if arms differ by such folders alone: their runs would look like those of one arm.
    """
    labels = results.plan.labels
    if len({pathless(label) for label in labels}) < len(labels):
        raise error(
            "SD-F712",
            "arms would have one name without the folders of their paths",
            where=str(results.folder),
            got=", ".join(label for label in labels if label != pathless(label)),
            expect="names that differ without them",
            fix="name the arms in [ablation.arms]",
        )
    rows = tuple(
        replace(row, arm=pathless(row.arm), error=without_paths(homeless(row.error, results))) for row in results.runs
    )
    plan = replace(
        PlanRecord.from_json(pathless(results.plan.to_json())),
        question=without_paths(results.plan.question),
        tuning=without_paths(results.plan.tuning),
        published="",
    )
    return replace(results, plan=plan, runs=rows)


def homeless(text: str, results: AblationResults) -> str:
    """Return an error message without the folders of this machine."""
    known = {str(folder) for folder in (results.folder.resolve().parent, Path.home(), Path.cwd())}
    for folder in sorted(known - {"/"}, key=len, reverse=True):
        text = text.replace(f"{folder}/", "")
    return text


def files(results: AblationResults) -> Iterator[tuple[str, bytes]]:
    """(name, content) of everything that is published."""
    logs = logs_of(results)
    figures = dict(drawn(results, logs))
    grids = {f"{SAMPLES}/{slug(grid.arm)}.png": grid for grid in samples(results) if grid.png}
    yield README, readme(results, logs, figures_of(figures), {name: grid.arm for name, grid in grids.items()}).encode()
    yield PLAN, lines(to_json(replace(results.plan, runs=None).to_json(), indent=1))
    yield ENVIRONMENT, lines(to_json(environments(results), indent=1))
    followed = {metric: targets(results, logs, metric) for metric in results.plan.metrics}
    yield RESULTS, lines(*(to_json(published_row(results, row, logs, followed)) for row in results.runs))
    for arm, recipe in recipes(results):
        yield f"{RECIPES}/{slug(arm)}.json", lines(to_json(recipe, indent=1))
    for name, chart in figures.items():
        yield name, lines(as_file(chart))
    for name, grid in grids.items():
        yield name, grid.png or b""


def lines(*texts: str) -> bytes:
    return "".join(f"{text}\n" for text in texts).encode()


def published_row(
    results: AblationResults, row: RunOutcome, logs: Logs, followed: Mapping[str, Mapping[str, float]]
) -> dict[str, Any]:
    """Return a run without its folder: its scores, and what else the tables of the page need, where it has them.

    Args:
        followed: by metric and arm, the target.
    """
    own = {key: value for key, value in row.to_json().items() if key != "folder"}
    log = logs[row.arm].get(row.seed, [])
    arm = results.plan.arm(row.arm)
    for metric, arms in followed.items():
        curve = points(log, metric)
        if row.arm in arms and len(curve) > 1:  # as the table counts them
            step = first_at(curve, arms[row.arm], metric_of(metric).better)
            own.setdefault("curves", {})[metric] = curve
            flops = None if step is None else arm.flops_until(step)
            own.setdefault("reached", {})[metric] = {"target": arms[row.arm], "step": step, "flops": flops}
    if probe := probe_of(results.folder / row.folder):
        own["probe"] = probe.to_json()
    return own


def targets(results: AblationResults, logs: Logs, metric: str) -> dict[str, float]:
    """Return the target of each arm that was followed on a metric."""
    return {one.arm: one.target for one in reached(results, logs, metric)}


def recipes(results: AblationResults) -> Iterator[tuple[str, Any]]:
    """Yield the resolved recipe of each arm at the first seed that has one; the others differ from it by their seed."""
    for arm in results.plan.arms:
        recipe = first_recipe(results.folder, results.of(arm.label))
        if recipe is not None:
            yield arm.label, pathless(recipe)


def drawn(results: AblationResults, logs: Logs) -> Iterator[tuple[str, Markup]]:
    """(file, chart): every curve over steps and over FLOPs, and the probes."""
    for charts in curves(results, logs):
        for axis in OVER:
            yield f"{FIGURES}/{slug(title_of(charts[axis]))}-over-{axis}.svg", charts[axis]
    if probe := probed(results):
        for chart in probe.charts:
            yield f"{FIGURES}/{slug(title_of(chart))}.svg", chart


def figures_of(drawn: Mapping[str, Markup]) -> list[ChartFile]:
    """Return their description in the README."""
    return [ChartFile(name, title_of(chart)) for name, chart in drawn.items()]
