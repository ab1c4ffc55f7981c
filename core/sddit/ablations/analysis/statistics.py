"""What seeds can tell: means, paired differences, Student-t intervals, and a verdict in plain words. numpy, no torch.

An ablation repeats every arm over the same seeds. Arms of one seed share batches, noise and initial weights, so arm and
baseline are compared seed by seed: what a seed does to both cancels. An arm with draws of its own is compared as independent
runs, by Welch's t. Seeds are few, hence Student's t. The percentile
bootstrap is no substitute: its nominal 95 % intervals hold the truth in 75 % of cases at 3 seeds and in 84 % at 5.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sddit.interfaces.metric_names import Direction

Array = NDArray[np.float64]
Verdict = Literal["better", "worse", "within noise", "no verdict under 3 seeds"]

LEVEL = 0.95  # of the intervals; 1 - LEVEL is the share of false verdicts that a family of arms may have
LEAST_SEEDS = 3


# --------------------------------------------------------------------------------------------------------------------
# Arms and their baseline
# --------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Summary:
    """One figure of one arm over its seeds. The interval is of the mean; with one seed there is neither spread nor interval."""

    seeds: int
    mean: float
    spread: float | None  # standard deviation over seeds, n - 1 in the denominator
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True)
class Sides:
    """One figure of an arm and of its baseline, by seed. A seed that failed is left out."""

    arm: Mapping[int, float]
    baseline: Mapping[int, float]
    paired: bool = True  # whether runs of one seed share their draws; then only the seeds of both count


@dataclass(frozen=True, slots=True)
class Comparison:
    """One figure of an arm minus that of its baseline."""

    seeds: int
    difference: float | None  # mean over seeds of arm - baseline; None without a seed of both
    low: (
        float | None
    )  # interval of this arm alone: Student's t of the paired differences, Welch's of runs that are no pairs
    high: float | None
    p: float | None  # two-sided, of this arm alone; None under 3 seeds
    p_holm: float | None  # corrected for all arms of the family: what the verdict rests on
    family: int  # how many arms were tested together
    verdict: Verdict


def summarize(values: Sequence[float]) -> Summary:
    """Mean and spread of a figure over seeds. Raises ValueError for none, or for one that is not finite."""
    x = _finite(values)
    if not len(x):
        raise ValueError("no seed to summarise")
    if len(x) == 1:
        return Summary(1, float(x[0]), None, None, None)
    mean, low, high = (float(v) for v in student_interval(x))
    return Summary(len(x), mean, float(x.std(ddof=1)), low, high)


def compare(sides: Mapping[str, Sides], *, better: Direction) -> dict[str, Comparison]:
    """Every arm against its baseline, on one figure.

    Args:
        sides: by name of the arm.
        better: which way the figure should go.

    Returns:
        By name; the verdicts of all of them together are false in at most 1 - LEVEL of ablations in which no arm differs.
        That guarantee is for one figure: who looks at many figures sees more.
    """
    apart = {name: _paired(one) if one.paired else _unpaired(one) for name, one in sides.items()}
    tested = {name: d.p for name, d in apart.items() if d.p is not None and d.seeds >= LEAST_SEEDS}
    corrected = dict(zip(tested, holm(list(tested.values())).tolist(), strict=True))
    return {name: _comparison(d, corrected.get(name), len(tested), better) for name, d in apart.items()}


class _Difference(NamedTuple):
    """The mean of arm - baseline, with what the runs tell of its noise: None as far as they are too few for that."""

    seeds: int
    mean: float | None = None
    low: float | None = None
    high: float | None = None
    p: float | None = None


def _paired(sides: Sides) -> _Difference:
    """By the differences over the seeds of both."""
    seeds = sorted(sides.arm.keys() & sides.baseline.keys())
    d = _finite([sides.arm[seed] for seed in seeds]) - _finite([sides.baseline[seed] for seed in seeds])
    if len(d) < 2:
        return _Difference(len(d), *d.tolist())
    mean, low, high = (float(v) for v in student_interval(d))
    return _Difference(len(d), mean, low, high, float(student_p(d)))


def _unpaired(sides: Sides) -> _Difference:
    """By the means of two independent samples: which run stands beside which is arbitrary, and must not decide."""
    x, y = _finite(list(sides.arm.values())), _finite(list(sides.baseline.values()))
    seeds = min(len(x), len(y))
    if seeds < 2:
        return _Difference(seeds, float(x.mean() - y.mean())) if seeds else _Difference(0)
    return _Difference(seeds, *welch(x, y))


def _comparison(d: _Difference, p_holm: float | None, family: int, better: Direction) -> Comparison:
    verdict: Verdict = "no verdict under 3 seeds"
    if d.mean is not None and p_holm is not None:
        good = d.mean < 0 if better == "lower" else d.mean > 0
        verdict = "within noise" if p_holm >= 1 - LEVEL else "better" if good else "worse"
    p = None if p_holm is None else d.p
    return Comparison(d.seeds, d.mean, d.low, d.high, p, p_holm, family, verdict)


def _finite(values: Sequence[float]) -> Array:
    x = np.asarray(values, dtype=np.float64)
    if not np.isfinite(x).all():
        raise ValueError("a figure that is not finite is no measurement: its run has failed, leave the seed out")
    return x


def p_text(p: float) -> str:
    """`p = 0.013`, `p < 0.001`."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.2g}"


# --------------------------------------------------------------------------------------------------------------------
# Intervals and tests over the last axis
# --------------------------------------------------------------------------------------------------------------------


def student_interval(values: ArrayLike, level: float = LEVEL) -> tuple[Array, Array, Array]:
    """Mean, low and high of the Student-t interval of the mean, over the last axis of [..., n], n >= 2.

    Exact for normal values. Nominal 95 % was measured on made-up noise at 3, 5 and 10 seeds: differences of paired runs whose
    noise is exponential, 95.5, 95.2 and 94.9 %, as most of a skew cancels between the two sides; with heavy lognormal tails
    97.2, 97.6 and 97.0 %, wider than need be. A skew of one side alone stays: a single arm with exponential noise, 88, 88 and 90 %,
    and differences of exponential noise whose two scales are 4 to 1, 90 %. Those intervals promise too much.
    """
    x = np.asarray(values, dtype=np.float64)
    n = x.shape[-1]
    mean, error = x.mean(axis=-1), x.std(axis=-1, ddof=1) / math.sqrt(n)
    reach = student_quantile((1 + level) / 2, n - 1) * error
    return mean, mean - reach, mean + reach


def student_p(differences: ArrayLike) -> Array:
    """Two-sided p-value that the mean of [..., n] is 0. Differences that are 0 for every seed have p = 1."""
    d = np.asarray(differences, dtype=np.float64)
    n = d.shape[-1]
    mean, error = np.abs(d.mean(axis=-1)), d.std(axis=-1, ddof=1) / math.sqrt(n)
    with np.errstate(divide="ignore", invalid="ignore"):
        t = np.where(mean > 0, mean / error, 0.0)
    return np.asarray(2 * student_tail(t, n - 1))


def welch(one: ArrayLike, other: ArrayLike, level: float = LEVEL) -> tuple[float, float, float, float]:
    """(difference, low, high, p) of the means of two independent samples, [n] - [m], whose spreads may differ (Welch 1947).

    Degrees of freedom by Satterthwaite. Samples without any spread differ surely, p = 0, or not at all, p = 1.
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
    """Holm's correction (1979) over the last axis of [..., m]: the p-values of m tests made together.

    Rejecting where the result is below 5 % makes any false rejection at all a 5 % event, whatever ties the tests.
    """
    p = np.asarray(p, dtype=np.float64)
    order = np.argsort(p, axis=-1)
    factors = np.arange(p.shape[-1], 0, -1)  # m for the smallest, 1 for the largest
    rising = np.maximum.accumulate(np.take_along_axis(p, order, axis=-1) * factors, axis=-1)
    corrected = np.empty_like(p)
    np.put_along_axis(corrected, order, np.minimum(rising, 1.0), axis=-1)
    return corrected


# --------------------------------------------------------------------------------------------------------------------
# Student's t
# --------------------------------------------------------------------------------------------------------------------


def student_quantile(p: float, dof: float) -> float:
    """The t below which Student's distribution with `dof` > 0 degrees of freedom has the share p, 0 < p < 1.

    Newton's method on the upper tail. That falls and is convex, so from 0 the steps rise to the root and do not pass it.
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
    """The share of Student's distribution above t >= 0: I_x(dof/2, 1/2) / 2 with x = dof / (dof + t^2)."""
    square = np.minimum(np.asarray(t, dtype=np.float64) ** 2, 1e300)
    x, y = dof / (dof + square), square / (dof + square)  # x + y = 1, each without the other's rounding
    edge = 1.5 / (dof / 2 + 2.5)  # where both fractions are quick: y < (b + 1) / (a + b + 2)
    tail = _beta_share(dof / 2, 0.5, np.minimum(x, 1 - edge))
    body = 1 - _beta_share(0.5, dof / 2, np.minimum(y, edge))
    return np.asarray(np.where(y < edge, body, tail) / 2)


def _beta_share(a: float, b: float, x: Array) -> Array:
    """The incomplete beta function I_x(a, b), by its continued fraction (DLMF 8.17.22), for x < (a + 1) / (a + b + 2)."""
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
