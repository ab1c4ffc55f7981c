"""How soon arms get somewhere: the steps and FLOPs after which a score reaches a target. Read from the runs' curves. No torch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import mean
from typing import Any

from sddit.ablations.logs import Log, Logs
from sddit.ablations.results import Results
from sddit.ablations.statistics import Direction, Sides, Summary, Verdict, compare, summarize
from sddit.ablations.table import redrawn
from sddit.evaluation.figures import FIGURES, SCORE

Point = tuple[float, float]
"""(step, score)."""


@dataclass(frozen=True, slots=True)
class Reached:
    """When one arm reached the target of one metric."""

    arm: str
    target: float
    runs: int  # with a curve
    steps: Summary | None  # of the runs that reached it; None: no run did
    at_once: bool  # whether some run was there at its first score already, so that its steps are too many
    flops: float | None  # of as many steps
    of_baseline: float | None  # its steps over the baseline's, where every run of both got there
    flops_of_baseline: float | None
    verdict: str  # on the difference in steps, of those arms together; empty for the others


def reached(results: Results, logs: Logs, metric: str) -> list[Reached]:
    """Arm by arm; nothing for a metric that was not scored while training."""
    better = FIGURES[metric.rpartition(".")[2]].better
    arms = {arm["label"]: arm for arm in results.plan["arms"]}
    curves = {label: {seed: points(log, metric) for seed, log in logs[label].items()} for label in arms}
    curves = {label: {seed: run for seed, run in runs.items() if len(run) > 1} for label, runs in curves.items()}
    found: dict[str, _Found] = {}
    for label, arm in arms.items():
        target = target_of(results.plan, metric, list(curves[arm["baseline"]].values()), better)
        if curves[label] and target is not None:
            found[label] = _found(curves[label], target, better)
    return list(_rows(arms, found))


@dataclass(frozen=True, slots=True)
class _Found:
    """What the curves of one arm say of a target."""

    target: float
    steps: Mapping[int, float]  # by seed, of the runs that reached it
    runs: int
    at_once: bool

    @property
    def whole(self) -> bool:
        """Whether every run reached it: otherwise the mean is one of the quick ones, and compares with nothing."""
        return len(self.steps) == self.runs


def _found(curves: Mapping[int, Sequence[Point]], target: float, better: Direction) -> _Found:
    steps = {seed: step for seed, run in curves.items() if (step := first_at(run, target, better)) is not None}
    return _Found(target, steps, len(curves), any(reaches(run[0][1], target, better) for run in curves.values()))


def _rows(arms: Mapping[str, Mapping[str, Any]], found: Mapping[str, _Found]) -> Iterator[Reached]:
    compared = compare(
        {
            label: Sides(one.steps, base.steps, paired=not redrawn(arms[label]))
            for label, one in found.items()
            if (base := found[arms[label]["baseline"]]) is not one and one.whole and base.whole
        },
        better="lower",
    )
    for label, one in found.items():
        base = arms[label]["baseline"]
        cost, cost_of_base = arms[label]["flops_per_step"], arms[base]["flops_per_step"]
        steps = list(one.steps.values())
        ratio = mean(steps) / mean(found[base].steps.values()) if label in compared else None
        yield Reached(
            label,
            one.target,
            one.runs,
            summarize(steps) if steps else None,
            one.at_once,
            mean(steps) * cost if steps and cost else None,
            ratio,
            ratio * cost / cost_of_base if ratio and cost and cost_of_base else None,
            SOONER[compared[label].verdict] if label in compared else "",
        )


SOONER: Mapping[Verdict, str] = {
    "better": "sooner",
    "worse": "later",
    "within noise": "within noise",
    "no verdict under 3 seeds": "no verdict",
}


def points(log: Log, metric: str) -> list[Point]:
    """The scores of one run over its steps."""
    key = f"{SCORE}{metric}"
    return [(line["step"], line[key]) for line in log if key in line and math.isfinite(line[key])]


def target_of(
    plan: Mapping[str, Any], metric: str, baseline: Sequence[Sequence[Point]], better: Direction
) -> float | None:
    """The recipe's target, or what the baseline's last scores reached in every seed; None without either."""
    if metric in plan.get("targets", {}):  # plans of an earlier version have none
        return float(plan["targets"][metric])
    ends = [run[-1][1] for run in baseline]
    return (max(ends) if better == "lower" else min(ends)) if ends else None


def reaches(score: float, target: float, better: Direction) -> bool:
    """Whether a score is as good as the target."""
    return score <= target if better == "lower" else score >= target


def first_at(run: Sequence[Point], target: float, better: Direction) -> float | None:
    """The step at which a curve first reaches the target; its first step if it begins there, None if it never does.

    Between two scores a distance falls about exponentially, so it is a line in its logarithm; another figure is a line.
    """
    if reaches(run[0][1], target, better):
        return run[0][0]
    for (step, score), (later, next_score) in pairwise(run):
        if reaches(next_score, target, better):
            on_log = better == "lower" and min(score, next_score, target) > 0
            a, b, at = (math.log(v) if on_log else v for v in (score, next_score, target))
            return step + (later - step) * (at - a) / (b - a)
    return None
