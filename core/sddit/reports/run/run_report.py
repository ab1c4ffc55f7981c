"""The report of a run: one HTML file that needs no network and runs no script.

All text from recipes, plugins and data sets is escaped.
"""

from __future__ import annotations

from sddit.evaluation.monitors import judge, monitors
from sddit.reports.rendering import render
from sddit.reports.run.probe_charts import probe_charts
from sddit.reports.run.run_charts import (
    average_charts,
    diagnostic_charts,
    loss_charts,
    noise_charts,
    optimization_charts,
    score_charts,
)
from sddit.reports.run.run_data import ReportData
from sddit.reports.run.score_table import score_rows
from sddit.reports.run.settings_table import settings
from sddit.reports.run.suggestions import suggestions


def write_report(run: ReportData) -> str:
    """Return the page as HTML."""
    rows = settings(run)
    verdicts = [judge(key, monitor, run.metrics) for key, monitor in monitors(run.monitors, run.metrics).items()]
    return render(
        "run_report.html.j2",
        run=run,
        score_tables=[(scores, score_rows(scores)) for scores in run.scores.values()],
        verdicts=verdicts,
        alarms=[verdict for verdict in verdicts if verdict.state == "look here"],
        score_charts=score_charts(run),
        average_charts=average_charts(run),
        probe_charts=list(probe_charts(run.probe).values()) if run.probe else [],
        loss_charts=loss_charts(run),
        noise_charts=noise_charts(run),
        diagnostic_charts=diagnostic_charts(run),
        optimization_charts=optimization_charts(run),
        chosen=[setting for setting in rows if not setting.untouched],
        untouched=[setting for setting in rows if setting.untouched],
        steps=[*suggestions(run, verdicts), *run.next_steps],
    )
