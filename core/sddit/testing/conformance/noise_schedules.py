"""Check what holds for every noise schedule."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor

from sddit.interfaces import NoiseSchedule, NoiseScheduleParams
from sddit.testing import fixtures
from sddit.testing.case import Case

COUNT = 33
CHANGED, COPY = "it changed what it was given", "work on a copy"


def examine(case: Case) -> None:
    """Check a schedule over its entire range of t."""
    with case.trying("it was built"):
        schedule: NoiseSchedule = case.build()
        low, high = case.params.t_range
        case.expect(0 <= low < high < math.inf, "t_range does not rise", got=f"{low}, {high}")
        case.equal(schedule.outputs, case.params.outputs, "outputs differ between it and its params")
        u = torch.linspace(0.001, 0.999, COUNT, dtype=torch.float64)
        given = u.clone()
        with case.no_global_randomness(), case.unchanged(lambda: {"u": given}, CHANGED, COPY):
            drawn = schedule.t_from_uniform(given)
        if not case.of_shape(drawn, (COUNT,), "t_from_uniform"):
            return
        case.finite(drawn, "t_from_uniform")
        t = torch.as_tensor(torch.unique(drawn))  # a discrete schedule repeats times
        with case.trying("t went over its range"):
            examine_scales(case, schedule, t)
            examine_perturb(case, schedule, t)
            examine_scalings(case, schedule, t)
            examine_levels(case, schedule, t)
            examine_noise_fraction(case, schedule, t)
        for kind in case.params.grids:
            with case.trying(f"it made a grid of kind {kind!r}"):
                examine_grid(case, schedule, kind)


def examine_scales(case: Case, schedule: NoiseSchedule, t: Tensor) -> None:
    """Check that the noise level grows with t."""
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    if case.shaped(alpha, t.shape, "alpha(t)") and case.shaped(sigma, t.shape, "sigma(t)"):
        rises = bool(((sigma / alpha).diff() > 0).all())
        fix = "t grows with noise in every schedule"
        case.expect(rises, "the noise level sigma / alpha does not grow with t", fix=fix)
        case.expect(bool((sigma > 0).all() and (alpha > 0).all()), "alpha or sigma is not above 0 at a trained t")
        case.equal(sigma.dtype, t.dtype, "sigma(t) has another dtype than t")


def examine_perturb(case: Case, schedule: NoiseSchedule, t: Tensor) -> None:
    """Check x = alpha x0 + sigma noise."""
    x0, noise = (fixtures.numbers(len(t), 2, 4, 4, key=key, dtype=torch.float64) for key in (1, 2))
    expected = schedule.alpha(t)[:, None, None, None] * x0 + schedule.sigma(t)[:, None, None, None] * noise
    given = {"x0": x0, "noise": noise, "t": t}
    with case.no_global_randomness(), case.unchanged(lambda: given, CHANGED, COPY):
        x = schedule.perturb(x0, noise, t)
    if case.shaped(x, tuple(x0.shape), "perturb"):
        close = torch.allclose(x, expected, rtol=1e-9, atol=1e-9)
        case.expect(close, "perturb is not alpha(t) x0 + sigma(t) noise")


def examine_scalings(case: Case, schedule: NoiseSchedule, t: Tensor) -> None:
    """Check that scalings are finite and invertible, and that c_noise distinguishes noise levels."""
    scalings = schedule.scalings(t)
    for name in ("c_skip", "c_out", "c_in", "c_noise"):
        if not case.shaped(getattr(scalings, name), t.shape, f"scalings(t).{name}"):
            return
    case.expect(bool((scalings.c_in > 0).all()), "c_in is not above 0")
    case.expect(bool((scalings.c_out != 0).all()), "c_out is 0 somewhere: there the network has no effect")
    differences = scalings.c_noise.diff()
    apart = bool((differences > 0).all() or (differences < 0).all())
    case.expect(apart, "c_noise does not distinguish noise levels", expect="strictly rising or falling with t")


def examine_levels(case: Case, schedule: NoiseSchedule, t: Tensor) -> None:
    """Check that t is recovered from its noise level, and that `snap` is idempotent."""
    level = schedule.sigma(t) / schedule.alpha(t)
    same = torch.allclose(schedule.t_from_sigma(level), t, rtol=1e-6)
    case.expect(same, "t_from_sigma does not undo sigma(t) / alpha(t)")
    fixed = torch.allclose(schedule.snap(level), level, rtol=1e-6)
    case.expect(fixed, "snap moves a level that was trained")
    once = schedule.snap((level[1:] * level[:-1]).sqrt())
    case.expect(torch.equal(schedule.snap(once), once), "snapping twice is not snapping once")


def examine_noise_fraction(case: Case, schedule: NoiseSchedule, t: Tensor) -> None:
    """Check that the fraction grows with the noise, between 0 and 1."""
    fraction = schedule.noise_fraction(t)
    if case.shaped(fraction, t.shape, "noise_fraction(t)"):
        inside = bool(((fraction >= 0) & (fraction <= 1)).all())
        got = f"{fraction.min():g} to {fraction.max():g}"
        case.expect(inside, "noise_fraction(t) is not within 0 to 1", got=got)
        rises = bool((fraction.diff() >= 0).all()) and bool(fraction[-1] > fraction[0])
        case.expect(rises, "noise_fraction(t) does not grow with t")


def examine_grid(case: Case, schedule: NoiseSchedule, kind: str) -> None:
    """Check that levels fall from sigma_max to sigma_min, then to 0, as Python floats.

    A schedule's own grid may end between these bounds.
    """
    low, high = schedule.sigma_range
    for steps in (2, 9):
        levels = schedule.grid(steps, kind=kind, sigma_min=low, sigma_max=high, rho=7.0)
        shown = f"grid({steps}, kind={kind!r})"
        if not case.expect(all(type(level) is float for level in levels), f"{shown} are not Python floats"):
            continue
        case.equal(len(levels), steps + 1, f"{shown} has a wrong length")
        falls = all(a > b for a, b in pairwise(levels)) and levels[-1] == 0
        case.expect(falls, f"{shown} does not fall to 0", got=levels)
        first, last = levels[0], levels[-2]
        if kind in NoiseScheduleParams().grids:
            ends = math.isclose(first, high, rel_tol=1e-6) and math.isclose(last, low, rel_tol=1e-6)
        else:
            ends = low * (1 - 1e-6) <= last and first <= high * (1 + 1e-6)
        what = f"{shown} does not go from sigma_max to sigma_min"
        case.expect(ends, what, got=f"{first}, {last}", expect=f"{high}, {low}")
