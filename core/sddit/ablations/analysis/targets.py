"""Compute the steps and FLOPs after which a score reaches a target, from the curves of the runs. No torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from statistics import mean

from sddit.ablations.analysis.diagnostics import Log, Logs
from sddit.ablations.analysis.results import AblationResults
from sddit.ablations.analysis.statistics import Comparison, Summary, summarize
from sddit.ablations.analysis.table import against_baselines
from sddit.interfaces.metric_names import SCORE, Direction, metric_of

Point = tuple[float, float]
"""(step, score)."""


@dataclass(frozen=True, slots=True)
class Relative:
    """Steps or FLOPs of an arm relative to those of its baseline."""

    ratio: float  # of the means
    comparison: Comparison  # of all such arms together; better is less


@dataclass(frozen=True, slots=True)
class Reached:
    """When one arm reached the target of one metric."""

    arm: str
    target: float
    runs: int  # with a curve
    got_there: int  # runs that reached it
    steps: Summary | None  # only if every run did: averaging the fast ones alone would flatter the arm
    flops: Summary | None  # of as many steps; None if the arm's cost is not stated
    at_once: bool  # whether some run had reached it at its first score, so that its steps are an upper bound
    steps_of_baseline: Relative | None = None  # if every run of both reached it, and none at its first score
    flops_of_baseline: Relative | None = None


def reached(results: AblationResults, logs: Logs, metric: str) -> list[Reached]:
    """Return the arms with a curve of the metric; empty if it was not scored during training.

    The target is that of the recipe, or what the baseline reached at the end in every seed.
    """
    plan, better = results.plan, metric_of(metric).better
    curves: dict[str, dict[int, list[Point]]] = {}
    for arm in plan.arms:
        runs = {seed: points(log, metric) for seed, log in logs[arm.label].items()}
        curves[arm.label] = {seed: run for seed, run in runs.items() if len(run) > 1}
    found: list[Reached] = []
    exact_steps: dict[str, Mapping[int, float]] = {}
    exact_flops: dict[str, Mapping[int, float]] = {}
    for arm in plan.arms:
        label, curve = arm.label, curves[arm.label]
        ends = [run[-1][1] for run in curves[arm.baseline].values()]
        reached_by_all = max(ends, default=None) if better == "lower" else min(ends, default=None)
        target = plan.targets.get(metric, reached_by_all)
        if not curve or target is None:
            continue
        steps = {seed: step for seed, run in curve.items() if (step := first_at(run, target, better)) is not None}
        flops = {seed: spent for seed, step in steps.items() if (spent := arm.flops_until(step)) is not None}
        at_once = any(reaches(run[0][1], target, better) for run in curve.values())
        complete = len(steps) == len(curve)
        mean_steps = summarize(list(steps.values())) if complete else None
        mean_flops = summarize(list(flops.values())) if complete and flops else None
        found.append(Reached(label, target, len(curve), len(steps), mean_steps, mean_flops, at_once))
        if complete and not at_once:  # else the steps are an upper bound, which is not compared
            exact_steps[label] = steps
            exact_flops |= {label: flops} if flops else {}
    of_steps, of_flops = _relative(results, exact_steps), _relative(results, exact_flops)
    return [
        replace(one, steps_of_baseline=of_steps.get(one.arm), flops_of_baseline=of_flops.get(one.arm)) for one in found
    ]


def _relative(results: AblationResults, spent: Mapping[str, Mapping[int, float]]) -> dict[str, Relative]:
    """Compare every arm with its baseline, by label; `spent`: by arm and seed."""
    arms = results.plan.by_label
    return {
        label: Relative(mean(spent[label].values()) / mean(spent[arms[label].baseline].values()), comparison)
        for label, comparison in against_baselines(results, spent, "lower").items()
    }


def points(log: Log, metric: str) -> list[Point]:
    """Return the scores of one run over its steps."""
    key = f"{SCORE}{metric}"
    return [(line["step"], line[key]) for line in log if key in line and math.isfinite(line[key])]


def reaches(score: float, target: float, better: Direction) -> bool:
    """Return whether a score is as good as the target."""
    return score <= target if better == "lower" else score >= target


def first_at(run: Sequence[Point], target: float, better: Direction) -> float | None:
    """Return the step at which a curve first reaches the target, interpolated; None if it does not.

    Between two scores a distance is interpolated linearly in its logarithm, another metric linearly.
    """
    if reaches(run[0][1], target, better):
        return run[0][0]
    for (step, score), (later, next_score) in pairwise(run):
        if reaches(next_score, target, better):
            on_log = better == "lower" and min(score, next_score, target) > 0
            a, b, at = (math.log(v) if on_log else v for v in (score, next_score, target))
            return step + (later - step) * (at - a) / (b - a)
    return None
