"""Check what holds for every noise schedule."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor

from sddit.interfaces import NoiseSchedule, NoiseScheduleParams
from sddit.testing import fixtures as things
from sddit.testing.kit import Case, Findings

COUNT = 33


def examine(case: Case, findings: Findings) -> None:
    """Try a schedule over its whole range of t."""
    with findings.trying("it was built"):
        schedule: NoiseSchedule = case.build()
        low, high = case.params.t_range
        findings.expect(0 <= low < high < math.inf, "t_range does not rise", got=f"{low}, {high}")
        expect = str(case.params.outputs)
        findings.expect(
            schedule.outputs == case.params.outputs,
            "outputs differ between it and its params",
            got=str(schedule.outputs),
            expect=expect,
        )
        t = times(schedule)
        with findings.trying("t went over its range"):
            examine_scales(schedule, t, findings)
            examine_perturb(schedule, t, findings)
            examine_scalings(schedule, t, findings)
            examine_levels(schedule, t, findings)
            examine_noise_fraction(schedule, t, findings)
        for kind in case.params.grids:
            with findings.trying(f"it made a grid of kind {kind!r}"):
                examine_grid(schedule, kind, findings)


def times(schedule: NoiseSchedule) -> Tensor:
    """Trained times from lowest to highest, each once, float64."""
    u = torch.linspace(0.001, 0.999, COUNT, dtype=torch.float64)
    return torch.as_tensor(torch.unique(schedule.t_from_uniform(u)))


def examine_scales(schedule: NoiseSchedule, t: Tensor, findings: Findings) -> None:
    """Noise grows with t; the signal does not."""
    u = torch.linspace(0.001, 0.999, COUNT, dtype=torch.float64)
    if not things.is_shaped(findings, schedule.t_from_uniform(u), (COUNT,), "t_from_uniform"):
        return
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    if things.is_shaped(findings, alpha, t.shape, "alpha(t)") and things.is_shaped(
        findings, sigma, t.shape, "sigma(t)"
    ):
        rises = bool(((sigma / alpha).diff() > 0).all())
        findings.expect(
            rises, "the noise level sigma / alpha does not grow with t", fix="t grows with noise in every schedule"
        )
        findings.expect(bool((sigma > 0).all() and (alpha > 0).all()), "alpha or sigma is not above 0 at a trained t")
        findings.expect(
            sigma.dtype == t.dtype, "sigma(t) has another dtype than t", got=str(sigma.dtype), expect=str(t.dtype)
        )


def examine_perturb(schedule: NoiseSchedule, t: Tensor, findings: Findings) -> None:
    """x = alpha x0 + sigma noise."""
    x0, noise = (things.numbers(len(t), 2, 4, 4, key=key, dtype=torch.float64) for key in (1, 2))
    expected = schedule.alpha(t)[:, None, None, None] * x0 + schedule.sigma(t)[:, None, None, None] * noise
    x = schedule.perturb(x0, noise, t)
    if things.is_shaped(findings, x, tuple(x0.shape), "perturb"):
        close = torch.allclose(x, expected, rtol=1e-9, atol=1e-9)
        findings.expect(close, "perturb is not alpha(t) x0 + sigma(t) noise")


def examine_scalings(schedule: NoiseSchedule, t: Tensor, findings: Findings) -> None:
    """Finite everywhere, invertible, and telling the network each level apart."""
    scalings = schedule.scalings(t)
    for name in ("c_skip", "c_out", "c_in", "c_noise"):
        if not things.is_shaped(findings, getattr(scalings, name), t.shape, f"scalings(t).{name}"):
            return
    findings.expect(bool((scalings.c_in > 0).all()), "c_in is not above 0")
    findings.expect(bool((scalings.c_out != 0).all()), "c_out is 0 somewhere: there the network says nothing")
    differences = scalings.c_noise.diff()
    apart = bool((differences > 0).all() or (differences < 0).all())
    findings.expect(apart, "c_noise does not distinguish noise levels", expect="strictly rising or falling with t")


def examine_levels(schedule: NoiseSchedule, t: Tensor, findings: Findings) -> None:
    """From t to a level and back; snapping is done once."""
    level = schedule.sigma(t) / schedule.alpha(t)
    back = schedule.t_from_sigma(level)
    findings.expect(torch.allclose(back, t, rtol=1e-6), "t_from_sigma does not undo sigma(t) / alpha(t)")
    snapped = schedule.snap(level)
    findings.expect(torch.allclose(snapped, level, rtol=1e-6), "snap moves a level that was trained")
    between = (level[1:] * level[:-1]).sqrt()
    once = schedule.snap(between)
    findings.expect(torch.equal(schedule.snap(once), once), "snapping twice is not snapping once")


def examine_noise_fraction(schedule: NoiseSchedule, t: Tensor, findings: Findings) -> None:
    """From 0 to 1 as noise grows."""
    fraction = schedule.noise_fraction(t)
    if things.is_shaped(findings, fraction, t.shape, "noise_fraction(t)"):
        inside = bool(((fraction >= 0) & (fraction <= 1)).all())
        findings.expect(
            inside, "noise_fraction(t) is not within 0 to 1", got=f"{fraction.min():g} to {fraction.max():g}"
        )
        rises = bool((fraction.diff() >= 0).all()) and bool(fraction[-1] > fraction[0])
        findings.expect(rises, "noise_fraction(t) does not grow with t")


def examine_grid(schedule: NoiseSchedule, kind: str, findings: Findings) -> None:
    """Falling levels from sigma_max to sigma_min, then 0, as Python floats.

    A schedule's own grid may stop short of the ends.
    """
    low, high = schedule.sigma_range
    for steps in (2, 9):
        levels = schedule.grid(steps, kind=kind, sigma_min=low, sigma_max=high, rho=7.0)
        shown = f"grid({steps}, kind={kind!r})"
        if not findings.expect(all(type(level) is float for level in levels), f"{shown} are not Python floats"):
            continue
        findings.expect(
            len(levels) == steps + 1, f"{shown} has a wrong length", got=str(len(levels)), expect=str(steps + 1)
        )
        falls = all(a > b for a, b in pairwise(levels)) and levels[-1] == 0
        findings.expect(falls, f"{shown} does not fall to 0", got=str(levels))
        if kind in NoiseScheduleParams().grids:
            ends = math.isclose(levels[0], high, rel_tol=1e-6) and math.isclose(levels[-2], low, rel_tol=1e-6)
        else:
            ends = low * (1 - 1e-6) <= levels[-2] and levels[0] <= high * (1 + 1e-6)
        findings.expect(
            ends,
            f"{shown} does not go from sigma_max to sigma_min",
            got=f"{levels[0]}, {levels[-2]}",
            expect=f"{high}, {low}",
        )
