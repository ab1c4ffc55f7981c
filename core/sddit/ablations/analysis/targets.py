"""Compute the steps and FLOPs after which a score reaches a target, from the curves of the runs. No torch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import mean

from sddit.ablations.analysis.diagnostics import Log, Logs
from sddit.ablations.analysis.results import AblationResults
from sddit.ablations.analysis.statistics import Comparison, Sides, Summary, compare, summarize
from sddit.ablations.analysis.table import redrawing_settings
from sddit.ablations.planning.records import ArmRecord, PlanRecord
from sddit.interfaces.metric_names import SCORE, Direction, metric_of

Point = tuple[float, float]
"""(step, score)."""


@dataclass(frozen=True, slots=True)
class Reached:
    """When one arm reached the target of one metric."""

    arm: str
    target: float
    runs: int  # with a curve
    got_there: int  # runs that reached it
    steps: Summary | None  # only if every run did: averaging the fast ones alone would flatter the arm
    flops: Summary | None  # of as many steps
    at_once: bool  # whether some run had reached it at its first score, so that its steps are an upper bound
    steps_of_baseline: Relative | None  # if every run of both reached it, and none at its first score
    flops_of_baseline: Relative | None


@dataclass(frozen=True, slots=True)
class Relative:
    """Steps or FLOPs of an arm relative to those of its baseline."""

    ratio: float  # of the means
    comparison: Comparison  # of all such arms together; better is less


def reached(results: AblationResults, logs: Logs, metric: str) -> list[Reached]:
    """Return the arms with a curve of the metric; empty if it was not scored during training."""
    better = metric_of(metric).better
    arms = results.plan.by_label
    curves = {label: {seed: points(log, metric) for seed, log in logs[label].items()} for label in arms}
    curves = {label: {seed: run for seed, run in runs.items() if len(run) > 1} for label, runs in curves.items()}
    found: dict[str, _Found] = {}
    for label, arm in arms.items():
        target = target_of(results.plan, metric, list(curves[arm.baseline].values()), better)
        if curves[label] and target is not None:
            found[label] = _found(arm, curves[label], target, better)
    return list(_rows(arms, found))


@dataclass(frozen=True, slots=True)
class _Found:
    """When the curves of one arm reached a target."""

    target: float
    steps: Mapping[int, float]  # by seed, of the runs that reached it
    flops: Mapping[int, float]  # of as many steps; empty where the arm's cost is not stated
    runs: int
    at_once: bool

    @property
    def all_reached(self) -> bool:
        """Return whether every run reached it."""
        return len(self.steps) == self.runs


def _found(arm: ArmRecord, curves: Mapping[int, Sequence[Point]], target: float, better: Direction) -> _Found:
    steps = {seed: step for seed, run in curves.items() if (step := first_at(run, target, better)) is not None}
    flops = {seed: spent for seed, step in steps.items() if (spent := arm.flops_until(step)) is not None}
    return _Found(target, steps, flops, len(curves), any(reaches(run[0][1], target, better) for run in curves.values()))


def _rows(arms: Mapping[str, ArmRecord], found: Mapping[str, _Found]) -> Iterator[Reached]:
    # steps of a run that had reached the target at its first score are an upper bound, which is not compared
    exact = {label: one for label, one in found.items() if one.all_reached and not one.at_once}
    steps = _relative(arms, {label: one.steps for label, one in exact.items()})
    flops = _relative(arms, {label: one.flops for label, one in exact.items() if one.flops})
    for label, one in found.items():
        yield Reached(
            label,
            one.target,
            one.runs,
            len(one.steps),
            summarize(list(one.steps.values())) if one.all_reached else None,
            summarize(list(one.flops.values())) if one.all_reached and one.flops else None,
            one.at_once,
            steps.get(label),
            flops.get(label),
        )


def _relative(arms: Mapping[str, ArmRecord], spent: Mapping[str, Mapping[int, float]]) -> dict[str, Relative]:
    """Compare every arm with its baseline, by label; `spent`: by arm and seed."""
    bases = {label: spent[base] for label in spent if (base := arms[label].baseline) != label and base in spent}
    sides = {
        label: Sides(spent[label], base, paired=not redrawing_settings(arms[label])) for label, base in bases.items()
    }
    return {
        label: Relative(mean(spent[label].values()) / mean(bases[label].values()), comparison)
        for label, comparison in compare(sides, better="lower").items()
    }


def points(log: Log, metric: str) -> list[Point]:
    """Return the scores of one run over its steps."""
    key = f"{SCORE}{metric}"
    return [(line["step"], line[key]) for line in log if key in line and math.isfinite(line[key])]


def target_of(plan: PlanRecord, metric: str, baseline: Sequence[Sequence[Point]], better: Direction) -> float | None:
    """Return the recipe's target, or what the baseline reached at the end in every seed; None without either."""
    if metric in plan.targets:
        return float(plan.targets[metric])
    ends = [run[-1][1] for run in baseline]
    return (max(ends) if better == "lower" else min(ends)) if ends else None


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
