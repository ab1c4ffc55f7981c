"""Compare arms over seeds: means, paired differences, Student-t intervals, and a verdict. numpy, no torch.

An ablation repeats every arm with the same seeds. Arms of one seed share batches, noise and initial weights, so arm and
baseline are compared by seed: what a seed does to both cancels. An arm with draws of its own is compared as independent
runs, by Welch's t. Seeds are few, hence Student's t. The percentile bootstrap cannot replace it: its nominal 95 %
intervals contain the true value in 75 % of cases at 3 seeds and in 84 % at 5.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sddit.interfaces.metric_names import Direction

Array = NDArray[np.float64]
Verdict = Literal["better", "worse", "within noise", "no verdict under 3 seeds", "no verdict without gradient"]

LEVEL = 0.95  # of the intervals; 1 - LEVEL is the accepted rate of false verdicts of a family of arms
MIN_SEEDS = 3


@dataclass(frozen=True, slots=True)
class Summary:
    """One metric of one arm over its seeds. The interval is of the mean; one seed has no spread and no interval."""

    seeds: int
    mean: float
    spread: float | None  # standard deviation over seeds, n - 1 in the denominator
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True)
class Sides:
    """One metric of an arm and of its baseline, by seed, without failed seeds."""

    arm: Mapping[int, float]
    baseline: Mapping[int, float]
    paired: bool = True  # whether runs of one seed share their draws; then only the seeds of both count


@dataclass(frozen=True, slots=True)
class Comparison:
    """One metric of an arm minus that of its baseline."""

    seeds: int
    difference: float | None = None  # mean over seeds of arm - baseline; None without a seed of both
    low: float | None = None  # of this arm alone, by Student's t of paired differences or Welch's of independent runs
    high: float | None = None
    p: float | None = None  # two-sided, of this arm alone; None under 3 seeds
    p_holm: float | None = None  # corrected for all arms of the family: decides the verdict
    family: int = 0  # how many arms were tested together
    verdict: Verdict = "no verdict under 3 seeds"
    by_seed: tuple[float, ...] = ()  # each seed of the arm minus that of the baseline, or minus its mean


def summarize(values: Sequence[float]) -> Summary:
    """Return mean and spread over seeds. Raises ValueError without values, or for one that is not finite."""
    x = _finite(values)
    if not len(x):
        raise ValueError("no seed to summarise")
    if len(x) == 1:
        return Summary(1, float(x[0]), None, None, None)
    mean, low, high = (float(v) for v in student_interval(x))
    return Summary(len(x), mean, float(x.std(ddof=1)), low, high)


def compare(sides: Mapping[str, Sides], *, better: Direction) -> dict[str, Comparison]:
    """Compare every arm, by label, with its baseline on one metric.

    If no arm differs, any verdict is false in at most 1 - LEVEL of ablations. That holds for one metric; over several
    metrics false verdicts add up.
    """
    found = {name: _paired(one) if one.paired else _unpaired(one) for name, one in sides.items()}
    tested = {name: one.p for name, one in found.items() if one.p is not None}
    corrected = dict(zip(tested, holm(list(tested.values())).tolist(), strict=True))
    for name, one in found.items():
        verdict, p_holm = one.verdict, corrected.get(name)
        if one.difference is not None and p_holm is not None:
            good = one.difference < 0 if better == "lower" else one.difference > 0
            verdict = "within noise" if p_holm >= 1 - LEVEL else "better" if good else "worse"
        found[name] = replace(one, p_holm=p_holm, family=len(tested), verdict=verdict)
    return found


def _paired(sides: Sides) -> Comparison:
    """Compare by the differences over the seeds of both."""
    seeds = sorted(sides.arm.keys() & sides.baseline.keys())
    d = _finite([sides.arm[seed] for seed in seeds]) - _finite([sides.baseline[seed] for seed in seeds])
    by_seed = tuple(d.tolist())
    if len(d) < 2:
        return Comparison(len(d), by_seed[0] if by_seed else None, by_seed=by_seed)
    mean, low, high = (float(v) for v in student_interval(d))
    p = float(student_p(d)) if len(d) >= MIN_SEEDS else None
    return Comparison(len(d), mean, low, high, p, by_seed=by_seed)


def _unpaired(sides: Sides) -> Comparison:
    """Compare the means of two independent samples, in which runs have no counterpart."""
    x, y = _finite(list(sides.arm.values())), _finite(list(sides.baseline.values()))
    seeds = min(len(x), len(y))
    if not seeds:
        return Comparison(seeds)
    by_seed = tuple((x - y.mean()).tolist())
    if seeds < 2:
        return Comparison(seeds, float(x.mean() - y.mean()), by_seed=by_seed)
    difference, low, high, p = welch(x, y)
    return Comparison(seeds, difference, low, high, p if seeds >= MIN_SEEDS else None, by_seed=by_seed)


def _finite(values: Sequence[float]) -> Array:
    x = np.asarray(values, dtype=np.float64)
    if not np.isfinite(x).all():
        raise ValueError("a value is not finite: its run has failed, remove the seed")
    return x


def p_text(p: float) -> str:
    """Return p as text: `p = 0.013`, `p < 0.001`."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.2g}"


def student_interval(values: ArrayLike, level: float = LEVEL) -> tuple[Array, Array, Array]:
    """Return mean, low and high of the Student-t interval of the mean, over the last axis of [..., n], n >= 2.

    Exact for normal values. Measured coverage of the nominal 95 % on synthetic noise, at 3, 5 and 10 seeds: paired
    differences of exponential noise 95.5, 95.2 and 94.9 %, since most of the skew cancels; of lognormal noise with
    heavy tails 97.2, 97.6 and 97.0 %, wider than necessary. The skew of one side alone remains: a single arm with
    exponential noise 88, 88 and 90 %, differences of exponential noise with scales 4 to 1 90 %. Those intervals are too
    narrow.
    """
    x = np.asarray(values, dtype=np.float64)
    n = x.shape[-1]
    mean, error = x.mean(axis=-1), x.std(axis=-1, ddof=1) / math.sqrt(n)
    reach = student_quantile((1 + level) / 2, n - 1) * error
    return mean, mean - reach, mean + reach


def student_p(differences: ArrayLike) -> Array:
    """Return the two-sided p-value that the mean of [..., n] is 0. Differences that are 0 for every seed have p = 1."""
    d = np.asarray(differences, dtype=np.float64)
    n = d.shape[-1]
    mean, error = np.abs(d.mean(axis=-1)), d.std(axis=-1, ddof=1) / math.sqrt(n)
    with np.errstate(divide="ignore", invalid="ignore"):
        t = np.where(mean > 0, mean / error, 0.0)
    return np.asarray(2 * student_tail(t, n - 1))


def welch(one: ArrayLike, other: ArrayLike, level: float = LEVEL) -> tuple[float, float, float, float]:
    """Return (difference, low, high, p) of the means of two independent samples, [n] - [m] (Welch 1947).

    The spreads may differ; degrees of freedom by Satterthwaite. Samples without any spread have p = 0 or 1.
    """
    x, y = np.asarray(one, dtype=np.float64), np.asarray(other, dtype=np.float64)
    parts = np.asarray([sample.var(ddof=1) / len(sample) for sample in (x, y)])
    difference, variance = float(x.mean() - y.mean()), float(parts.sum())
    if variance == 0:
        return difference, difference, difference, float(difference == 0)
    dof = variance**2 / float((parts**2 / (len(x) - 1, len(y) - 1)).sum())
    error = math.sqrt(variance)
    reach = student_quantile((1 + level) / 2, dof) * error
    return difference, difference - reach, difference + reach, 2 * float(student_tail(abs(difference) / error, dof))


def holm(p: ArrayLike) -> Array:
    """Return the p-values of m tests made together, corrected by Holm (1979), over the last axis of [..., m].

    Rejecting below 5 % has a 5 % probability of any false rejection, for any dependence of the tests.
    """
    p = np.asarray(p, dtype=np.float64)
    order = np.argsort(p, axis=-1)
    factors = np.arange(p.shape[-1], 0, -1)  # m for the smallest, 1 for the largest
    rising = np.maximum.accumulate(np.take_along_axis(p, order, axis=-1) * factors, axis=-1)
    corrected = np.empty_like(p)
    np.put_along_axis(corrected, order, np.minimum(rising, 1.0), axis=-1)
    return corrected


def student_quantile(p: float, dof: float) -> float:
    """Return the quantile at p, 0 < p < 1, of Student's distribution with `dof` > 0 degrees of freedom.

    By Newton's method on the upper tail, which decreases and is convex: steps from 0 approach the root from below.
    """
    if not 0 < p < 1 or dof <= 0:
        raise ValueError(f"no quantile for p = {p}, {dof} degrees of freedom")
    above = min(p, 1 - p)
    peak = math.exp(-_log_beta(dof / 2, 0.5)) / math.sqrt(dof)
    t = 0.0
    while True:
        density = peak * (1 + t * t / dof) ** (-(dof + 1) / 2)
        step = (float(student_tail(t, dof)) - above) / density
        if step <= 1e-15 * t:
            return math.copysign(t, p - 0.5)
        t += step


def student_tail(t: ArrayLike, dof: float) -> Array:
    """Return the upper tail of Student's distribution at t >= 0: I_x(dof/2, 1/2) / 2, x = dof / (dof + t^2)."""
    square = np.minimum(np.asarray(t, dtype=np.float64) ** 2, 1e300)
    x, y = dof / (dof + square), square / (dof + square)  # x + y = 1, each without the other's rounding
    edge = 1.5 / (dof / 2 + 2.5)  # where both fractions are quick: y < (b + 1) / (a + b + 2)
    tail = _incomplete_beta(dof / 2, 0.5, np.minimum(x, 1 - edge))
    body = 1 - _incomplete_beta(0.5, dof / 2, np.minimum(y, edge))
    return np.asarray(np.where(y < edge, body, tail) / 2)


def _incomplete_beta(a: float, b: float, x: Array) -> Array:
    """Return the incomplete beta I_x(a, b), x < (a + 1) / (a + b + 2), by a continued fraction (DLMF 8.17.22)."""
    fraction = np.ones_like(x)
    for m in range(30 + int(2 * math.sqrt(max(a, b))), 0, -1):  # from the inside out
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m - 1) * (a + b + m - 1) * x / ((a + 2 * m - 2) * (a + 2 * m - 1))
        fraction = 1 + odd / (1 + even / fraction)
    with np.errstate(divide="ignore"):
        power = np.exp(a * np.log(x) + b * np.log1p(-x) - _log_beta(a, b))
    return np.asarray(power / (a * fraction))


def _log_beta(a: float, b: float) -> float:
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)
