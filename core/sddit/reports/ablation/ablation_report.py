"""The report of an ablation: one HTML file that needs no network and runs no script. No torch.

It shows the content of the run folders each time the command ends. Its records and sentences are also those of the page
of a published ablation.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sddit.ablations.analysis.diagnostics import diagnoses, environments, logs_of
from sddit.ablations.analysis.results import AblationResults
from sddit.ablations.analysis.statistics import LEVEL, p_text
from sddit.ablations.analysis.table import (
    comparisons,
    format_changes,
    format_difference,
    format_summary,
    metric_cells,
    metric_title,
)
from sddit.data.undecoded import CAPTION
from sddit.interfaces.metric_names import metric_of
from sddit.reports.ablation.ablation_tables import PLOT_WIDTH, cost, how_soon, interval_axis, what_differs
from sddit.reports.ablation.caveats import caveats, group
from sddit.reports.ablation.conclusions import budget, fairness, findings, summary
from sddit.reports.ablation.curves import AXES, diagnostic_charts, loss_charts, metric_charts
from sddit.reports.ablation.phrases import floors_sentence, format_arms, interval_note
from sddit.reports.ablation.probe_table import probed
from sddit.reports.ablation.reproduction import against_published
from sddit.reports.ablation.sample_grids import samples
from sddit.reports.charts import title_of
from sddit.reports.rendering import render
from sddit.storage.atomic import replace_file
from sddit.storage.run_folder import REPORT


def write_report(results: AblationResults) -> Path:
    """Write `report.html` atomically into the ablation's folder."""
    path = results.folder / REPORT
    replace_file(path, page(results).encode())
    return path


def page(results: AblationResults) -> str:
    """Return the report as HTML."""
    return render("ablation_report.html.j2", **contents(results))


def contents(results: AblationResults) -> dict[str, Any]:
    """Return what the templates of the report and of the published page show."""
    plan, logs = results.plan, logs_of(results)
    found = caveats(results, logs)
    compared = {metric: comparisons(results, metric) for metric in plan.metrics}
    watched = diagnoses(results, logs)
    return {
        "plan": plan,
        "results": results,
        "logs": logs,
        "caveats": found,
        "summary": summary(results, compared, found),
        "findings": findings(results, compared, found),
        "fairness": fairness(results, compared, found),
        "metrics": [(metric, metric_title(metric), metric_of(metric).better) for metric in compared],
        "compared": compared,
        "scales": {metric: interval_axis(of_arms.values()) for metric, of_arms in compared.items()},
        "plot_width": PLOT_WIDTH,
        "floors": floors_sentence(results),
        "legend": interval_note(compared),
        "what_differs": list(what_differs(results)),
        "reached": {metric: list(how_soon(results, logs, metric)) for metric in compared},
        "cost": list(cost(results)),
        "axes": AXES,
        "curves": [*metric_charts(results, logs), *loss_charts(results, logs)],
        "samples": list(samples(results)),
        "caption": CAPTION if plan.undecoded else "",
        "diagnosed": list(dict.fromkeys(one.arm for one in watched)),
        "diagnostics": group((one.key, one) for one in watched),
        "diagnostic_charts": diagnostic_charts(results, logs, {one.key: one.monitor for one in watched}),
        "probe": probed(results),
        "reproduction": against_published(results),
        "facts": [
            ("Ablation", f"{plan.name}-{plan.id}"),
            ("Data", plan.data),
            ("Budget", budget(plan.budget)),
            ("Seeds", ", ".join(map(str, plan.seeds))),
            ("Metrics", ", ".join(plan.metrics) or "none"),
            ("Tuning", plan.tuning or "not stated"),
        ],
        "environment": [(key, ", ".join(values)) for key, values in environments(results).items()],
        "level": f"{LEVEL:.0%}",
        "format_arms": format_arms,
        "format_changes": format_changes,
        "format_difference": format_difference,
        "format_summary": format_summary,
        "metric_cells": metric_cells,
        "metric_title": metric_title,
        "p_text": p_text,
        "title_of": title_of,
    }
