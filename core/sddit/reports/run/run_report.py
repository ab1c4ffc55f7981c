"""The report of a run: one HTML file that needs no network and runs no script.

Everything that comes from a recipe, a plugin or a data set is escaped; nothing here knows what any of them is.
"""

from __future__ import annotations

from collections.abc import Iterator

from sddit.evaluation.monitors import judge, monitors
from sddit.formatting import format_duration, format_number
from sddit.reports.rendering import render
from sddit.reports.run.probe_charts import probe_charts
from sddit.reports.run.run_charts import course_charts, diagnostic_charts, loss_charts, noise_charts, score_charts
from sddit.reports.run.run_data import ReportData, RunCost
from sddit.reports.run.score_table import score_rows
from sddit.reports.run.settings_table import settings
from sddit.reports.run.suggestions import suggestions


def write_report(run: ReportData) -> str:
    """Return the page, as text."""
    verdicts = [judge(key, monitor, run.metrics) for key, monitor in monitors(run.monitors, run.metrics).items()]
    return render(
        "run_report.html.j2",
        run=run,
        facts=headline(run),
        score_tables=[(scores, score_rows(scores)) for scores in run.scores.values()],
        verdicts=verdicts,
        alarms=[verdict for verdict in verdicts if verdict.state == "look here"],
        score_charts=score_charts(run),
        probe_charts=list(probe_charts(run.probe).values()) if run.probe else [],
        loss_charts=loss_charts(run),
        noise_charts=noise_charts(run),
        diagnostic_charts=diagnostic_charts(run),
        course_charts=course_charts(run),
        chosen=[setting for setting in settings(run) if not setting.untouched],
        untouched=[setting for setting in settings(run) if setting.untouched],
        cost=cost_rows(run.cost),
        steps=[*suggestions(run, verdicts), *run.next_steps],
    )


def headline(run: ReportData) -> Iterator[tuple[str, str, str]]:
    """Return what a reader wants first: (name, value, note)."""
    for scores in run.scores.values():
        yield scores.fd_name, f"{scores.times_floor:.1f} ×", "the floor (held-out real images)"
        if scores.class_accuracy is not None and scores.class_accuracy_floor is not None:
            yield (
                "Class accuracy",
                f"{scores.class_accuracy:.0%}",
                f"of samples by {scores.title}; real images {scores.class_accuracy_floor:.0%}",
            )
    yield "Training", format_duration(run.cost.seconds), run.cost.device
    if run.cost.images_per_second is not None:
        yield "Speed", format_number(run.cost.images_per_second), "images per second"


def cost_rows(cost: RunCost) -> Iterator[tuple[str, str]]:
    """Return the cost of the run in readable units."""
    unknown = "not stated"
    yield "Device", cost.device or unknown
    yield "Trained parameters", unknown if cost.parameters is None else f"{cost.parameters:,}"
    yield "FLOPs of a step", unknown if cost.flops_per_step is None else f"{cost.flops_per_step:.3g}"
    yield "FLOPs of the run", unknown if cost.flops is None else f"{cost.flops:.3g}"
    yield "Images per second", unknown if cost.images_per_second is None else format_number(cost.images_per_second)
    yield "Time in training", format_duration(cost.seconds)
    yield "Peak memory", unknown if cost.peak_memory is None else f"{cost.peak_memory / 2**20:,.0f} MiB"
