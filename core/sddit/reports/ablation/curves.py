"""Draw the mean of each arm over seeds, with a band, over steps, images, FLOPs or seconds. No torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean

from markupsafe import Markup

from sddit.ablations.analysis.diagnostics import Log, Logs
from sddit.ablations.analysis.results import AblationResults
from sddit.ablations.analysis.statistics import summarize
from sddit.ablations.analysis.table import metric_title
from sddit.ablations.planning.records import ArmRecord
from sddit.evaluation.monitors import RATIO, keys_of
from sddit.evaluation.probe import Probe
from sddit.interfaces import Monitor
from sddit.interfaces.metric_names import SCORE
from sddit.reports.charts import Reference, Series, are_positive, levels, line_chart

Position = Callable[[ArmRecord, Mapping[str, float]], float | None]
"""(arm, line of a log) -> position on the axis."""


@dataclass(frozen=True, slots=True)
class CurveAxis:
    """A quantity that curves are drawn over."""

    key: str
    title: str
    at: Position


AXES = (
    CurveAxis("steps", "steps", lambda arm, line: line["step"]),
    CurveAxis("images", "images", lambda arm, line: line["step"] * arm.batch),
    CurveAxis("flops", "FLOPs", lambda arm, line: arm.flops_until(line["step"])),
    CurveAxis("seconds", "seconds", lambda arm, line: line.get("seconds")),
)

Charts = dict[str, Markup]
"""A chart over each axis, by the key of the axis."""


def loss_charts(results: AblationResults, logs: Logs) -> list[Charts]:
    """Return the charts of each loss, with the arms that have it."""
    keys = [key for key in all_keys(logs) if key.startswith("loss/") and "@" not in key]
    return [over_axes(f"loss.{key.partition('/')[2]}", key, results, logs) for key in keys]


def diagnostic_charts(results: AblationResults, logs: Logs, monitors: Mapping[str, Monitor]) -> list[Markup]:
    """Return a chart for each diagnostic over steps, with the arms that have it and the levels to read it against."""
    charts = []
    for key, monitor in monitors.items():
        series = list(lines(key, AXES[0], results, logs))
        log_y = key.startswith(RATIO) and are_positive(series)
        charts.append(chart(monitor.title, series, AXES[0].title, levels(monitor), log_y=log_y))
    return charts


def all_keys(logs: Logs) -> list[str]:
    """Return all keys that runs have logged."""
    return keys_of([dict.fromkeys(keys_of(log), 0.0) for of_arm in logs.values() for log in of_arm.values()])


def over_axes(heading: str, key: str, results: AblationResults, logs: Logs, *, log_y: bool = False) -> Charts:
    """Return one key of the logs over each axis."""
    return {axis.key: chart(heading, lines(key, axis, results, logs), axis.title, log_y=log_y) for axis in AXES}


def chart(
    heading: str, series: Iterable[Series], x_label: str, references: Sequence[Reference] = (), *, log_y: bool = False
) -> Markup:
    """Return a chart; a single line has no legend, so the title names it."""
    drawn = list(series)
    title = f"{heading}, {drawn[0].name}" if len(drawn) == 1 else heading
    return line_chart(title, drawn, x_label=x_label, references=references, log_y=log_y)


def lines(key: str, axis: CurveAxis, results: AblationResults, logs: Logs) -> Iterator[Series]:
    """Yield a line for each arm: the mean over seeds at each logged step, with a band of ± one standard deviation."""
    for slot, arm in enumerate(results.plan.arms):
        if points := list(over_seeds(key, axis, arm, list(logs[arm.label].values()))):
            x, y, low, high = zip(*points, strict=True)
            yield Series(legend_name(arm), x, y, low, high, slot)


def legend_name(arm: ArmRecord) -> str:
    """Return the name of an arm in a legend, which marks a baseline."""
    return f"{arm.label} (baseline)" if arm.is_baseline else arm.label


def over_seeds(
    key: str, axis: CurveAxis, arm: ArmRecord, runs: Sequence[Log]
) -> Iterator[tuple[float, float, float, float]]:
    """Yield (position, mean, low, high) at each step that every run of the arm has logged."""
    by_step = [{line["step"]: line for line in run if key in line} for run in runs]
    for step in by_step[0] if by_step else ():
        at = [axis.at(arm, run[step]) for run in by_step if step in run]
        known = [position for position in at if position is not None]
        if len(known) == len(by_step):
            yield mean(known), *band([run[step][key] for run in by_step])


def band(values: Sequence[float]) -> tuple[float, float, float]:
    """Return the mean, and one standard deviation below and above it."""
    try:
        one = summarize(values)
    except ValueError:  # not finite: a gap
        return (float("nan"),) * 3
    spread = one.spread or 0.0
    return one.mean, one.mean - spread, one.mean + spread


def metric_charts(results: AblationResults, logs: Logs) -> list[Charts]:
    """Return the charts of each metric that was scored during training."""
    keys = all_keys(logs)
    return [
        over_axes(metric_title(metric), f"{SCORE}{metric}", results, logs, log_y=metric.endswith(".fd"))
        for metric in results.plan.metrics
        if f"{SCORE}{metric}" in keys
    ]


def probe_chart(heading: str, results: AblationResults, probes: Mapping[str, Sequence[Probe]], which: str) -> Markup:
    """Return a chart of accuracy by depth, at the best noise level of each block: a line with a band for each arm."""
    series = []
    for slot, arm in enumerate(results.plan.arms):
        if own := probes.get(arm.label):
            best = [[max(column) for column in zip(*getattr(probe, which), strict=True)] for probe in own]
            y, low, high = zip(*(band(values) for values in zip(*best, strict=True)), strict=True)
            series.append(Series(legend_name(arm), own[0].blocks, y, low, high, slot))
    return line_chart(heading, series, x_label="block")
