"""Measure the schedules and the denoising loss for `sddit-run verify`."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor

from sddit.interfaces import CheckContext, Measurement, NoiseSchedule, Outputs, View
from sddit.testing import fixtures
from sddit.verify.published import parity, published
from sddit_edm.flow import Flow
from sddit_edm.loss import Denoising, native_target
from sddit_edm.params import DenoisingParams, EDMParams, FlowParams
from sddit_edm.schedule import EDM

LEVELS = 500
FIVE_ERRORS = 5.0


def build_schedule(context: CheckContext) -> NoiseSchedule:
    """Build the checked component with its defaults."""
    assert context.component is not None
    schedule: NoiseSchedule = context.component.build(context.component.params())
    return schedule


def identities(context: CheckContext) -> Iterator[Measurement]:
    """Measure the identities of EDM's preconditioning (arXiv:2206.00364, appendix B.6) over all noise levels."""
    for dtype, bound in ((torch.float64, 1e-14), (torch.float32, 1e-6)):
        s = torch.logspace(math.log10(0.002), math.log10(80), LEVELS, dtype=dtype)
        off = {"c_in": 0.0, "c_out": 0.0, "c_skip": 0.0, "c_noise": 0.0}
        for sigma_data in (0.5, 0.9):
            for name, residual in residuals(EDM(EDMParams(sigma_data=sigma_data)), s).items():
                off[name] = max(off[name], float(residual.abs().max()))
        for name, value in off.items():
            yield Measurement(f"{str(dtype).removeprefix('torch.')}: identity of {name}", value, bound)


def residuals(schedule: EDM, s: Tensor) -> dict[str, Tensor]:
    """Return the residual of each identity, relative to its terms; 1 - c_skip is written without cancellation."""
    c, sd = schedule.scalings(s), schedule.sigma_data
    one_less_skip = s**2 / (s**2 + sd**2)
    return {
        "c_in": c.c_in**2 * (s**2 + sd**2) - 1,
        "c_out": (s**2 + sd**2) / (s * sd) ** 2 * c.c_out**2 - 1,
        "c_skip": (one_less_skip**2 * sd**2 + c.c_skip**2 * s**2) / c.c_out**2 - 1,
        "c_noise": torch.exp(4 * c.c_noise.double()) / s.double() - 1,
    }


def levels(context: CheckContext) -> Iterator[Measurement]:
    """Measure that noise grows with t, that t is recovered from the noise level, and that grids fall."""
    schedule = build_schedule(context)
    low, high = schedule.sigma_range
    u = torch.linspace(0.001, 0.999, LEVELS, dtype=torch.float64)
    t = torch.as_tensor(torch.unique(schedule.t_from_uniform(u)))
    level = schedule.sigma(t) / schedule.alpha(t)
    yield Measurement("levels at which noise does not grow with t", float((level.diff() <= 0).sum()), 0)
    steps = schedule.scalings(t).c_noise.diff()
    mixed = float(torch.minimum((steps <= 0).sum(), (steps >= 0).sum()))
    yield Measurement("levels at which c_noise is not monotonic", mixed, 0)
    back = schedule.t_from_sigma(level)
    yield Measurement("t recovered from its noise level, relative error", float(((back - t) / t).abs().max()), 1e-12)
    wrong = 0
    for kind in ("edm", "log", "native"):
        for count in (2, 18, 250):
            grid = schedule.grid(count, kind=kind, sigma_min=low, sigma_max=high, rho=7.0)
            ends = (len(grid), grid[0], grid[-2], grid[-1]) == (count + 1, high, low, 0.0)
            wrong += (not ends) + sum(above <= below for above, below in pairwise(grid))
    yield Measurement("grids that do not fall from sigma_max through sigma_min to 0", wrong, 0)


def training_levels(context: CheckContext) -> Iterator[Measurement]:
    """Measure that ln sigma in training is normal with the given mean and standard deviation."""
    z, u = normal_quantiles()
    sigma = EDM(EDMParams(p_mean=-0.4, p_std=0.7, sigma_data=0.5)).t_from_uniform(u)
    yield Measurement("quantiles of ln sigma, from p_mean + p_std z", max_difference(sigma.log(), 0.7 * z - 0.4), 1e-12)


def training_times(context: CheckContext) -> Iterator[Measurement]:
    """Measure that training times are uniform, or normal in ln(t / (1 - t)) with the given mean and std."""
    z, u = normal_quantiles()
    uniform = Flow(FlowParams()).t_from_uniform(u)
    yield Measurement("uniform: quantiles of t, from u", max_difference(uniform, u), 0)
    t = Flow(FlowParams(t_sampling="logit_normal", logit_mean=0.3, logit_std=0.6)).t_from_uniform(u)
    logit = (t / (1 - t)).log()
    yield Measurement("logit_normal: quantiles of ln(t / (1 - t))", max_difference(logit, 0.6 * z + 0.3), 1e-12)


def normal_quantiles() -> tuple[Tensor, Tensor]:
    """Return some z, and the standard normal distribution function at each."""
    z = torch.tensor([-3.0, -1.0, -0.25, 0.0, 0.5, 2.0], dtype=torch.float64)
    return z, torch.tensor([math.erfc(-each / math.sqrt(2)) / 2 for each in z.tolist()], dtype=torch.float64)


def max_difference(one: Tensor, two: Tensor) -> float:
    """Return the maximum absolute difference."""
    return float((one - two).abs().max())


def velocities(context: CheckContext) -> Iterator[Measurement]:
    """Measure that the exact velocity gives the clean image, with the time and sign of both directions."""
    t = torch.linspace(0.001, 0.999, LEVELS, dtype=torch.float64)
    x0, noise = (fixtures.numbers(LEVELS, 1, 2, 2, key=key, dtype=torch.float64) for key in (1, 2))
    x = (1 - t)[:, None, None, None] * x0 + t[:, None, None, None] * noise
    cases: tuple[tuple[Literal["noise", "data"], Tensor, Tensor], ...] = (
        ("noise", t, noise - x0),  # time input and output of the network
        ("data", 1 - t, x0 - noise),
    )
    for direction, time, velocity in cases:
        schedule = Flow(FlowParams(direction=direction, time_scale=1000.0))
        c = schedule.scalings(t)
        estimate = c.c_skip[:, None, None, None] * x + c.c_out[:, None, None, None] * velocity
        yield Measurement(
            f"{direction}: perturb, from (1 - t) x0 + t eps", max_difference(schedule.perturb(x0, noise, t), x), 0
        )
        yield Measurement(f"{direction}: c_skip x + c_out R, from x0", max_difference(estimate, x0), 1e-14)
        yield Measurement(f"{direction}: c_in, from 1", max_difference(c.c_in, torch.ones_like(t)), 0)
        yield Measurement(f"{direction}: c_noise, from its time", max_difference(c.c_noise, 1000 * time), 1e-12)


def zero_network(context: CheckContext) -> Iterator[Measurement]:
    """Measure that a zero network on images N(0, sigma_data^2) has a mean loss of 1."""
    schedule = EDM(EDMParams())
    count = 20_000
    x0 = schedule.sigma_data * fixtures.numbers(count, 1, 4, 4, key=1, dtype=torch.float64)
    noise = fixtures.numbers(count, 1, 4, 4, key=2, dtype=torch.float64)
    t = schedule.t_from_uniform((torch.arange(count, dtype=torch.float64) + 0.5) / count)
    loss = value_of(schedule, x0, noise, t, raw=torch.zeros_like(x0))
    error = float(loss.std()) / math.sqrt(count)
    shown = "loss of the zero network on Gaussian images, from 1, in standard errors"
    yield Measurement(shown, abs(float(loss.mean()) - 1) / error, FIVE_ERRORS)


def weights(context: CheckContext) -> Iterator[Measurement]:
    """Measure the loss of an error of 1 in x0: 1 for x0, SNR for eps, SNR + 1 for v, min(SNR, gamma) for min_snr."""
    snr, gamma = torch.logspace(-3, 4, LEVELS, dtype=torch.float64), 5.0
    expected: dict[str, tuple[dict[str, Any], Tensor]] = {
        "x0": ({"space": "x0"}, torch.ones_like(snr)),
        "eps": ({"space": "eps"}, snr),
        "v": ({"space": "v"}, snr + 1),
        "min_snr": ({"weighting": "min_snr", "snr_gamma": gamma}, torch.minimum(snr, torch.full_like(snr, gamma))),
    }
    x0, noise = (fixtures.numbers(LEVELS, 1, 4, 4, key=key, dtype=torch.float64) for key in (1, 2))
    schedules: dict[str, NoiseSchedule] = {"edm": EDM(EDMParams()), "flow": Flow(FlowParams())}
    for name, schedule in schedules.items():
        t = schedule.t_from_sigma(snr.rsqrt())
        raw = raw_of(schedule, x0 + 1, x0, noise, t)
        for space, (settings, weight) in expected.items():
            value = value_of(schedule, x0, noise, t, raw=raw, **settings)
            yield Measurement(
                f"{name}: weight of {space}, relative", max_difference(value / weight, torch.ones_like(t)), 1e-10
            )


def guided_targets(context: CheckContext) -> Iterator[Measurement]:
    """Measure the loss of a head, and that of the ideal network for a target moved away from a head by w (D - D_i)."""
    x0, noise, inner = (fixtures.numbers(LEVELS, 1, 4, 4, key=key, dtype=torch.float64) for key in (1, 2, 3))
    u = (torch.arange(LEVELS, dtype=torch.float64) + 0.5) / LEVELS
    schedules: dict[str, NoiseSchedule] = {"edm": EDM(EDMParams()), "flow": Flow(FlowParams())}
    for name, schedule in schedules.items():
        t, w = schedule.t_from_uniform(u), 0.4
        low = raw_of(schedule, inner, x0, noise, t)  # R of an auxiliary head whose prediction D_i is `inner`
        other = raw_of(schedule, 2 * x0, x0, noise, t)
        by_head = value_of(schedule, x0, noise, t, raw=other, inner=low, head="inner")
        alone = value_of(schedule, x0, noise, t, raw=low)
        yield Measurement(f"{name}: loss of a head, from that of its output alone", max_difference(by_head, alone), 0)
        ideal = raw_of(schedule, inner + (x0 - inner) / (1 - w), x0, noise, t)
        moved: dict[str, Any] = {"target_head": "inner", "target_scale": w}
        lowest = value_of(schedule, x0, noise, t, raw=ideal, inner=low, **moved)
        scale = alone.abs().max()
        yield Measurement(f"{name}: loss of D_i + (x0 - D_i) / (1 - w), relative", float(lowest.max() / scale), 1e-20)
        plain = value_of(schedule, x0, noise, t, raw=ideal, inner=low)
        yield Measurement(
            f"{name}: control, its loss with the target x0, relative", float(plain.max() / scale), 0.01, ">="
        )
        raw, head = other.clone().requires_grad_(), low.clone().requires_grad_()
        torch.autograd.backward(value_of(schedule, x0, noise, t, raw=raw, inner=head, **moved).sum())
        assert raw.grad is not None
        reached = 0.0 if head.grad is None else float(head.grad.abs().max())
        yield Measurement(f"{name}: gradient of the target to the head", reached, 0)
        target = native_target(schedule, view_of(schedule, x0, noise, t), x0.dtype) + w * (other - low)
        expected = 2 * (other - target) / x0[0].numel()
        off = max_difference(raw.grad, expected) / float(expected.abs().max())
        yield Measurement(f"{name}: gradient to the output, as if the target were fixed, relative", off, 1e-12)


def value_of(
    schedule: NoiseSchedule,
    x0: Tensor,
    noise: Tensor,
    t: Tensor,
    *,
    raw: Tensor,
    inner: Tensor | None = None,
    visible: Tensor | None = None,
    **settings: Any,
) -> Tensor:
    """Return the denoising loss of an output, [B], over the visible tokens of a 4 x 4 grid if some are hidden.

    `inner` is the output of an auxiliary head of that name.
    """
    view = view_of(schedule, x0, noise, t, visible)
    loss = Denoising(DenoisingParams(tokens="all" if visible is None else "visible", **settings), grid=(4, 4))
    context = fixtures.context()
    context.schedule = schedule
    heads = {} if inner is None else {"inner": (inner, inner)}
    value: Tensor = loss(context, {"student": view}, {"student": Outputs(raw=raw, heads=heads)})
    return value


def view_of(schedule: NoiseSchedule, x0: Tensor, noise: Tensor, t: Tensor, visible: Tensor | None = None) -> View:
    """Return the view of clean images at given noise."""
    x, labels = schedule.perturb(x0, noise, t), torch.zeros(len(x0), dtype=torch.int64)
    return View(network="student", x=x, t=t, labels=labels, x0=x0, noise=noise, visible=visible)


def raw_of(schedule: NoiseSchedule, denoised: Tensor, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """Return the output R of an estimate: its target plus (D - x0) / c_out."""
    view = View(network="student", x=x0, t=t, labels=t.long(), x0=x0, noise=noise)
    c_out = schedule.scalings(t).c_out[:, None, None, None]
    return native_target(schedule, view, x0.dtype) + (denoised - x0) / c_out


def published_schedule(context: CheckContext) -> Iterator[Measurement]:
    """Compare coefficients and grids with the published implementation."""
    stored = published(context, "edm_a")
    ours: dict[str, Tensor] = {}
    for sigma_data in (0.5, 0.9):
        c = EDM(EDMParams(sigma_data=sigma_data)).scalings(stored.inputs["sigmas"])
        for name in ("c_skip", "c_out", "c_in", "c_noise"):
            ours[f"precond/{sigma_data}/{name}"] = getattr(c, name)
    for steps in (5, 18, 40):
        grid = EDM(EDMParams()).grid(steps, kind="edm", sigma_min=0.002, sigma_max=80.0, rho=7.0)
        ours[f"heun/{steps}/grid"] = torch.tensor(grid, dtype=torch.float64)
    yield from parity("edm_a", ours, stored)


def published_loss(context: CheckContext) -> Iterator[Measurement]:
    """Compare the loss of EDM, and MaskDiT's over visible tokens, at the stored estimates."""
    stored = published(context, "edm_a")
    sigma = stored.outputs["loss/0.5/weight_sigma"][1]
    x0, noise = stored.inputs["images"], stored.inputs["noise_unit"]
    for sigma_data in (0.5, 0.9):
        schedule = EDM(EDMParams(sigma_data=sigma_data))
        raw = raw_of(schedule, stored.outputs[f"loss/{sigma_data}/denoised"], x0, noise, sigma)
        ours = {f"loss/{sigma_data}/per_sample_mean": value_of(schedule, x0, noise, sigma, raw=raw)}
        yield from parity("edm_a", ours, stored)
    stored = published(context, "maskdit_a")
    schedule, sigma = EDM(EDMParams()), stored.outputs["loss/sigma"]
    x0, noise = stored.inputs["images"], stored.inputs["noise_unit"]
    raw = raw_of(schedule, stored.outputs["loss/denoised"], x0, noise, sigma)
    visible = stored.outputs["mask/ids_keep"].sort(dim=1).values
    ours = {"loss/dsm_masked": value_of(schedule, x0, noise, sigma, raw=raw, visible=visible)}
    yield from parity("maskdit_a", ours, stored)
