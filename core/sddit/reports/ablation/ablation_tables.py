"""Compute the tables of an ablation report: targets, cost and settings."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from statistics import mean

from sddit.ablations.analysis.diagnostics import Logs
from sddit.ablations.analysis.results import AblationResults
from sddit.ablations.analysis.statistics import Comparison, Verdict, p_text
from sddit.ablations.analysis.table import format_summary
from sddit.ablations.analysis.targets import Relative, reached
from sddit.ablations.planning.records import SettingDifference
from sddit.formatting import format_duration, format_number, format_si
from sddit.recipes.parsing import quoted
from sddit.reports.charts import Axis, axis_over

PLOT_WIDTH, PLOT_EDGE = 220, 16  # of a plot of intervals, and its margins, which hold half a number of the scale
SOONER: Mapping[Verdict, str] = {"better": "sooner", "worse": "later"}
CHEAPER: Mapping[Verdict, str] = {"better": "fewer", "worse": "more"}


def interval_axis(compared: Iterable[Comparison]) -> Axis | None:
    """Return the axis on which the differences of a metric are drawn, with zero; None if there is no difference."""
    drawn = [one for one in compared if one.difference is not None]
    ends = (value for one in drawn for value in (one.low, one.high, *one.by_seed) if value is not None)
    return axis_over((0.0, *ends), PLOT_EDGE, PLOT_WIDTH - PLOT_EDGE, room=0.02) if drawn else None


def how_soon(results: AblationResults, logs: Logs, metric: str) -> Iterator[dict[str, str]]:
    """Yield one row per arm: when it reached the target of the metric. Empty without scores during training."""
    for one in reached(results, logs, metric):
        bound = "at most " if one.at_once else ""
        yield {
            "arm": one.arm,
            "target": format_number(one.target),
            "runs": f"{one.got_there} of {one.runs}",
            "steps": f"{bound}{format_summary(one.steps)}" if one.steps else "" if one.got_there else "never",
            "of_baseline": format_relative(one.steps_of_baseline, SOONER),
            "flops": f"{bound}{format_si(one.flops.mean)}" if one.flops else "",
            "flops_of_baseline": format_relative(one.flops_of_baseline, CHEAPER),
        }


def format_relative(one: Relative | None, words: Mapping[Verdict, str]) -> str:
    """Return `0.83 × sooner (p = 0.013)`; empty where nothing is compared."""
    if one is None:
        return ""
    verdict, p = one.comparison.verdict, one.comparison.p_holm
    word = words.get(verdict, verdict.partition(" under ")[0])
    return f"{one.ratio:.2f} × {word}" + (f" ({p_text(p)})" if p is not None else "")


def cost(results: AblationResults) -> Iterator[dict[str, str]]:
    """Yield the cost of each arm by heading: by formula, and as measured."""
    for arm in results.plan.arms:
        finished = results.finished_of(arm.label)
        memory = [row.peak_memory for row in finished if row.peak_memory is not None]
        speed = [row.images_per_second for row in finished if row.images_per_second is not None]
        yield {
            "arm": arm.label,
            "parameters, sampled": format_si(arm.sampled_parameters),
            "parameters, trained": format_si(arm.parameters),
            "FLOPs, training image": format_si(arm.flops_per_step and arm.flops_per_step / arm.batch),
            "FLOPs, sampled image": format_si(arm.sampling_flops_per_image),
            "FLOPs, training": format_si(arm.flops),
            "steps": f"{arm.steps:,}",
            "images": f"{arm.images:,}",
            "time": format_duration(mean(row.seconds for row in finished)) if finished else "",
            "images/s": format_number(mean(speed)) if speed else "",
            "peak memory": format_si(max(memory), "B") if memory else "",
        }


def what_differs(results: AblationResults) -> Iterator[tuple[str, str, list[tuple[str, str, str]]]]:
    """Yield (arm, its baseline, settings that differ) of every arm with such settings."""
    for arm in results.plan.arms:
        if arm.differs:
            yield arm.label, arm.baseline, list(setting_changes(arm.differs))


def setting_changes(differs: Sequence[SettingDifference]) -> Iterator[tuple[str, str, str]]:
    """Yield (key, the baseline's value, the arm's). A loss that only one of them has is one value."""
    names = [one for one in differs if re.fullmatch(r"loss\.[^.]+\.name", one.key)]
    losses = [one.key.removesuffix("name") for one in names if one.baseline is None or one.arm is None]
    for loss, some in groupby(differs, lambda one: next((loss for loss in losses if one.key.startswith(loss)), "")):
        changes = [(key.removeprefix(loss), format_value(theirs), format_value(own)) for key, theirs, own in some]
        if not loss:
            yield from changes
        elif changes[0][1] == "none":
            yield loss[:-1], "none", f"({', '.join(f'{key} {own}' for key, _, own in changes)})"
        else:
            yield loss[:-1], f"({', '.join(f'{key} {theirs}' for key, theirs, _ in changes)})", "none"


def format_value(value: object) -> str:
    """Return a value as in a recipe; `none` for one that is not set, `a table` for a component."""
    return "none" if value is None else "a table" if isinstance(value, Mapping) else quoted(value)
