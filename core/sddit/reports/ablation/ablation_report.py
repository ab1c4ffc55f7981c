"""The report of an ablation: one HTML file that needs no network and runs no script. No torch.

Made of what the folders of its runs hold, each time the command ends; the words are generated from the statistics.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sddit.ablations.analysis.diagnostics import Logs, diagnoses, environments, logs_of
from sddit.ablations.analysis.results import AblationResults
from sddit.ablations.analysis.statistics import LEVEL, p_text
from sddit.ablations.analysis.table import (
    comparisons,
    family_size,
    floors_of,
    format_summary,
    metric_title,
)
from sddit.formatting import format_number
from sddit.interfaces.metric_names import metric_of
from sddit.reports.ablation.ablation_tables import (
    COST,
    TARGET,
    Cell,
    by_key,
    cost,
    how_soon,
    overview,
    runs,
    statistics,
    what_differs,
)
from sddit.reports.ablation.caveats import caveats
from sddit.reports.ablation.conclusions import budget, fairness, findings, summary
from sddit.reports.ablation.curves import AXES, Charts, diagnostic_charts, loss_charts, metric_charts
from sddit.reports.ablation.phrases import floors_sentence, format_arms, interval_note
from sddit.reports.ablation.probe_table import PROBED, probed
from sddit.reports.ablation.reproduction import Reproduction, against_published
from sddit.reports.ablation.sample_grids import samples
from sddit.reports.page import render
from sddit.storage.atomic import replace_file
from sddit.storage.run_folder import REPORT


def write_report(results: AblationResults) -> Path:
    """`report.html` in the ablation's folder, whole or not at all."""
    path = results.folder / REPORT
    replace_file(path, page(results).encode())
    return path


def page(results: AblationResults) -> str:
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
        samples=list(samples(results)),
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


def agreements(reproduction: Reproduction | None) -> list[dict[str, Any]]:
    """Return a metric of an arm a line: published, here, and whether they agree."""
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


def facts(results: AblationResults) -> Iterator[tuple[str, str]]:
    """Yield the facts of the plan."""
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
