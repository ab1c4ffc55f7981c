"""Compute the tables of an ablation report: scores, statistics, targets, cost, runs and settings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any

from markupsafe import Markup

from sddit.ablations.analysis.diagnostics import Diagnosis, Logs
from sddit.ablations.analysis.results import AblationResults, RunOutcome
from sddit.ablations.analysis.statistics import LEVEL, Comparison, Verdict, p_text, summarize
from sddit.ablations.analysis.table import (
    format_changes,
    format_difference,
    format_summary,
)
from sddit.ablations.analysis.targets import Relative, reached
from sddit.formatting import format_duration, format_number, format_si
from sddit.recipes.parsing import quoted

PILLS = {"better": "good", "worse": "bad"}
BAR = 110  # pixels of the drawing of an interval
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
    """Yield an arm a line: what changed, every metric with its verdict, what it took."""
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
    """Return one metric of one arm; the baseline is compared with nothing."""
    values = list(results.figure(label, metric).values())
    value = format_summary(summarize(values)) if values else "none"
    verdict = comparison.verdict if comparison else "baseline"
    return Cell(value, verdict.partition(" under ")[0], PILLS.get(verdict, ""))


def statistics(results: AblationResults, metric: str, compared: Mapping[str, Comparison]) -> Iterator[dict[str, Any]]:
    """Yield an arm a line: mean, difference with its interval, p, verdict."""
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
    """Yield an arm a line: when it reached the target of the metric. Nothing where that was not followed."""
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
    """Return an interval and zero, drawn on the scale of its metric: -reach to reach."""
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
    """Yield an arm a line: what it is and what it took, by formula and by the clock; see `COST`."""
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
    """Return each diagnostic, and what it is in the arms that have it."""
    keys: dict[str, dict[str, Diagnosis]] = {}
    for one in watched:
        keys.setdefault(one.key, {})[one.arm] = one
    return [(next(iter(arms.values())), arms) for arms in keys.values()]


def runs(results: AblationResults) -> list[tuple[str, list[RunOutcome]]]:
    """Return the runs of each arm, seed by seed."""
    return [(arm.label, results.of(arm.label)) for arm in results.plan.arms]


def what_differs(results: AblationResults) -> Iterator[tuple[str, str, list[tuple[str, str, str]]]]:
    """(arm, its baseline, (key, the baseline's value, the arm's)) of every arm that differs from its baseline by a
    setting.
    """
    for arm in results.plan.arms:
        if found := arm.differs:
            yield arm.label, arm.baseline, [(key, value_of(theirs), value_of(own)) for key, theirs, own in found]


def value_of(value: Any) -> str:
    """Return a value of a recipe as it is typed there; `none` for one that is not set, `a table` for a component."""
    return "none" if value is None else "a table" if isinstance(value, Mapping) else quoted(value)
