"""What `sddit-run verify` measures of the schedules and of the denoising loss."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor

from sddit.interfaces import CheckContext, Measurement, NoiseSchedule, Outputs, View
from sddit.testing import things
from sddit.verify.published import parity, published
from sddit_edm import DenoisingParams, EDMParams
from sddit_edm.loss import Denoising, native_target
from sddit_edm.schedule import EDM

LEVELS = 500
FIVE_ERRORS = 5.0


def built(context: CheckContext) -> NoiseSchedule:
    """The component whose check this is, as it is by default."""
    assert context.component is not None
    schedule: NoiseSchedule = context.component.build(context.component.params())
    return schedule


def identities(context: CheckContext) -> Iterator[Measurement]:
    """What EDM's derivation asks of its preconditioning (arXiv:2206.00364, appendix B.6), over all its levels."""
    for dtype, bound in ((torch.float64, 1e-14), (torch.float32, 1e-6)):
        s = torch.logspace(math.log10(0.002), math.log10(80), LEVELS, dtype=dtype)
        off = {"c_in": 0.0, "c_out": 0.0, "c_skip": 0.0, "c_noise": 0.0}
        for sigma_data in (0.5, 0.9):
            for name, left in leftovers(EDM(EDMParams(sigma_data=sigma_data)), s).items():
                off[name] = max(off[name], float(left.abs().max()))
        for name, value in off.items():
            yield Measurement(f"{str(dtype).removeprefix('torch.')}: identity of {name}", value, bound)


def leftovers(schedule: EDM, s: Tensor) -> dict[str, Tensor]:
    """What is left of each identity, relative to its terms; 1 - c_skip is written without cancellation."""
    c, sd = schedule.scalings(s), schedule.sigma_data
    one_less_skip = s**2 / (s**2 + sd**2)
    return {
        "c_in": c.c_in**2 * (s**2 + sd**2) - 1,
        "c_out": (s**2 + sd**2) / (s * sd) ** 2 * c.c_out**2 - 1,
        "c_skip": (one_less_skip**2 * sd**2 + c.c_skip**2 * s**2) / c.c_out**2 - 1,
        "c_noise": torch.exp(4 * c.c_noise.double()) / s.double() - 1,
    }


def levels(context: CheckContext) -> Iterator[Measurement]:
    """Noise grows with t and is found again from its level; grids fall from end to end."""
    schedule = built(context)
    low, high = schedule.sigma_range
    u = torch.linspace(0.001, 0.999, LEVELS, dtype=torch.float64)
    t = torch.as_tensor(torch.unique(schedule.t_from_uniform(u)))
    level = schedule.sigma(t) / schedule.alpha(t)
    yield Measurement("levels at which noise does not grow with t", float((level.diff() <= 0).sum()), 0)
    steps = schedule.scalings(t).c_noise.diff()
    mixed = float(torch.minimum((steps <= 0).sum(), (steps >= 0).sum()))
    yield Measurement("levels at which c_noise turns back", mixed, 0)
    back = schedule.t_from_sigma(level)
    yield Measurement("t, its level, and t again", float(((back - t) / t).abs().max()), 1e-12)
    wrong = 0
    for kind in ("edm", "log", "native"):
        for count in (2, 18, 250):
            grid = schedule.grid(count, kind=kind, sigma_min=low, sigma_max=high, rho=7.0)
            ends = (len(grid), grid[0], grid[-2], grid[-1]) == (count + 1, high, low, 0.0)
            wrong += (not ends) + sum(above <= below for above, below in pairwise(grid))
    yield Measurement("grids that do not fall from sigma_max by way of sigma_min to 0", wrong, 0)


def zero_network(context: CheckContext) -> Iterator[Measurement]:
    """A network that gives 0, on images N(0, sigma_data^2), has a mean loss of 1: also the least of any network."""
    schedule = EDM(EDMParams())
    many = 20_000
    x0 = schedule.sigma_data * things.numbers(many, 1, 4, 4, key=1, dtype=torch.float64)
    noise = things.numbers(many, 1, 4, 4, key=2, dtype=torch.float64)
    t = schedule.t_from_uniform((torch.arange(many, dtype=torch.float64) + 0.5) / many)
    loss = value_of(schedule, x0, noise, t, raw=torch.zeros_like(x0))
    error = float(loss.std()) / math.sqrt(many)
    shown = "loss of the zero network on Gaussian images, from 1, in standard errors"
    yield Measurement(shown, abs(float(loss.mean()) - 1) / error, FIVE_ERRORS)


def value_of(
    schedule: NoiseSchedule, x0: Tensor, noise: Tensor, t: Tensor, *, raw: Tensor, visible: Tensor | None = None
) -> Tensor:
    """The denoising loss of an output, [B]; over the visible tokens of a 4 x 4 grid if some are hidden."""
    x, labels = schedule.perturb(x0, noise, t), torch.zeros(len(x0), dtype=torch.int64)
    view = View(network="student", x=x, t=t, labels=labels, x0=x0, noise=noise, visible=visible)
    term = Denoising(DenoisingParams(tokens="all" if visible is None else "visible"), grid=(4, 4))
    context = things.context()
    context.schedule = schedule
    value: Tensor = term(context, {"student": view}, {"student": Outputs(raw=raw)})
    return value


def raw_of(schedule: NoiseSchedule, denoised: Tensor, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """The output R that stands for an estimate: its target moved by (D - x0) / c_out."""
    view = View(network="student", x=x0, t=t, labels=t.long(), x0=x0, noise=noise)
    c_out = schedule.scalings(t).c_out[:, None, None, None]
    return native_target(schedule, view, x0.dtype) + (denoised - x0) / c_out


def published_schedule(context: CheckContext) -> Iterator[Measurement]:
    """Coefficients and grids of the published implementation."""
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
    """The loss of EDM, and MaskDiT's over visible tokens, at the stored estimates."""
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
