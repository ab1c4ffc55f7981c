"""Measure the densities of training times for `sddit-run verify`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from sddit.diffusion.time_sampling import TimeSampling
from sddit.interfaces import CheckContext, Measurement

LEVELS = 500


def time_densities(context: CheckContext) -> Iterator[Measurement]:
    """Measure that `time_sampling` draws the stated density of tau = sigma / (alpha + sigma), by its derivative.

    The inverse distribution function maps u to tau with slope 1 / density; its ends are 0 and 1.
    """
    assert context.component is not None
    u = torch.linspace(0.0005, 0.9995, LEVELS, dtype=torch.float64)
    for name, (settings, density) in densities().items():
        params = context.component.params.model_validate({"time_sampling": TimeSampling(**settings)})
        schedule = context.component.build(params)

        def tau_of(u: Tensor, schedule: Any = schedule) -> Tensor:
            t = schedule.t_from_uniform(u)
            tau: Tensor = schedule.sigma(t) / (schedule.alpha(t) + schedule.sigma(t))
            return tau

        inner = u.clone().requires_grad_()
        tau = tau_of(inner)
        (slope,) = torch.autograd.grad(tau.sum(), inner)
        relative = (slope * density(tau.detach()) - 1).abs()
        yield Measurement(f"{name}: slope of tau(u) times the density, from 1", float(relative.max()), 1e-9)
        ends = tau_of(torch.tensor([1e-12, 1 - 1e-9], dtype=torch.float64))
        yield Measurement(f"{name}: ends of tau(u), from 0 and 1", float(torch.maximum(ends[0], 1 - ends[1])), 0.02)


def densities() -> dict[str, tuple[dict[str, Any], Callable[[Tensor], Tensor]]]:
    """Return {name: (settings, density of tau)}, written out from the definitions of the densities."""

    def logit_normal(tau: Tensor, mean: float, std: float) -> Tensor:
        z = ((tau / (1 - tau)).log() - mean) / std
        return torch.exp(-(z**2) / 2) / (math.sqrt(2 * math.pi) * std * tau * (1 - tau))

    def plateau(tau: Tensor) -> Tensor:
        mean, std = 0.2 + math.log(2.0), 0.9
        every = torch.linspace(0, 1, 1_000_001, dtype=torch.float64)[1:-1]
        height, at = logit_normal(every, mean, std).max(0)
        mode = every[at]
        total = torch.special.ndtr(((mode / (1 - mode)).log() - mean) / std) + height * (1 - mode)
        density: Tensor = torch.where(tau < mode, logit_normal(tau, mean, std), height) / total
        return density

    shift = 3.0
    return {
        "uniform": ({"density": "uniform"}, torch.ones_like),
        "uniform, shifted": (
            {"density": "uniform", "shift": shift},
            lambda tau: shift / (shift + (1 - shift) * tau) ** 2,
        ),
        "logit_normal": (
            {"density": "logit_normal", "mean": -0.4, "std": 0.7, "shift": shift},
            lambda tau: logit_normal(tau, -0.4 + math.log(shift), 0.7),
        ),
        "plateau": ({"density": "plateau", "mean": 0.2, "std": 0.9, "shift": 2.0}, plateau),
    }
