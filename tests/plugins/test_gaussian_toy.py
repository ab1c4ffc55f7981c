"""Test every sampler with every noise schedule on data with known answers: independent Gaussian pixels.

The network is ideal, and is called as a trained one is: through the schedule's scalings, at trained levels, in the
schedule's own coordinates. So one flow leads from noise to images for every schedule. An ODE sampler must reach its end
with the error of its order, and a stochastic sampler the distribution of the images.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sddit.diffusion.preconditioning import ModelDenoiser
from sddit.interfaces import Component, Prediction
from sddit.plugins.host import Host

REGISTRIES = Host().registries
GRIDS = {"edm/edm": "edm"}
"""Spacing where it is not `native`: EDM is never sampled evenly in sigma."""

CHURN = {"churn": 10.0, "churn_min": 0.1, "churn_max": 50.0}
ODES: dict[str, list[tuple[dict[str, Any], int]]] = {
    "heun/euler": [({}, 1)],
    "heun/heun": [({}, 2), ({"coordinates": "native"}, 2)],
    "ddpm/ddim": [({}, 1)],
}
"""Settings with which a sampler solves the probability-flow ODE, and its order."""
STOCHASTIC: dict[str, list[tuple[dict[str, Any], int]]] = {
    "heun/euler": [(CHURN, 334)],
    "heun/heun": [(CHURN, 100), ({"coordinates": "native", **CHURN}, 100)],
    "ddpm/ddim": [({"eta": 0.5}, 334), ({"eta": 1.0}, 334)],
    "ddpm/ancestral": [({}, 38)],  # of Gaussian images a step is exact, with the right variance, at any length
}
"""Settings with which it adds noise, and steps after which its own error is below what the draws can show."""

MEAN = torch.tensor([0.6, -0.4, 0.1, -0.9], dtype=torch.float64).view(1, 1, 1, 4)
STD = torch.tensor([1.2, 0.5, 0.25, 0.7], dtype=torch.float64).view(1, 1, 1, 4)


def pairs(ways: dict[str, list[tuple[dict[str, Any], int]]]) -> list[Any]:
    """Yield each (schedule, sampler, settings, number) that is installed and valid in a recipe."""
    return [
        pytest.param(schedule, sampler, settings, number, id=f"{schedule.name}-{sampler.name}{settings}")
        for schedule in REGISTRIES.noise_schedules
        for sampler in REGISTRIES.samplers
        for settings, number in ways.get(sampler.qualified, [])
        if schedule.params().outputs == 2 or not sampler.params(**settings).needs_variance
    ]


def test_every_sampler_is_tested_here() -> None:
    assert {sampler.qualified for sampler in REGISTRIES.samplers} <= ODES.keys() | STOCHASTIC.keys()
    every = {
        (schedule.qualified, sampler.qualified)
        for schedule in REGISTRIES.noise_schedules
        for sampler in REGISTRIES.samplers
    }
    tried = {(pair.values[0].qualified, pair.values[1].qualified) for pair in pairs(ODES) + pairs(STOCHASTIC)}
    without_variance = {(f"edm/{schedule}", "ddpm/ancestral") for schedule in ("edm", "flow", "cosine_flow")}
    assert every - tried <= without_variance


class Watched:
    """A schedule that records the times of the last call of scalings."""

    def __init__(self, schedule: Any) -> None:
        self.schedule = schedule
        self.t = torch.empty(0)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.schedule, name)

    def scalings(self, t: Tensor) -> Any:
        self.t = t
        return self.schedule.scalings(t)


class Ideal(nn.Module):
    """R = (D - c_skip x) / c_out with D = E[x0 | x], and the variance of the reverse steps along `sigmas` on request.

    It takes the time from the schedule rather than from c_noise, which only distinguishes times.
    """

    def __init__(self, schedule: Watched, sigmas: list[float], std: Tensor = STD) -> None:
        super().__init__()
        self.schedule, self.sigmas, self.variance = schedule, sigmas, std**2

    def forward(
        self, x: Tensor, c_noise: Tensor, labels: Tensor, **_: Any
    ) -> tuple[Tensor, dict[Any, Any], dict[Any, Any]]:
        t = self.schedule.t
        c = self.schedule.schedule.scalings(t)
        c_in, c_skip, c_out, alpha, sigma = (
            each[:, None, None, None]
            for each in (c.c_in, c.c_skip, c.c_out, self.schedule.alpha(t), self.schedule.sigma(t))
        )
        x = x / c_in
        gain = self.variance / (self.variance + (sigma / alpha) ** 2)
        x0 = MEAN + gain * (x / alpha - MEAN)
        raw = (x0 - c_skip * x) / c_out
        if self.schedule.outputs == 2:
            fraction = self.fraction((sigma / alpha).flatten()[0].item())
            raw = torch.cat([raw, (2 * fraction - 1).expand_as(raw)], dim=1)
        return raw, {}, {}

    def fraction(self, level: float) -> Tensor:
        """Return ln Var(x_{t-1} | x_t) as a fraction, from that of the posterior's variance, 0, to that of beta, 1.

        With levels s > s': z' given z and x0 has variance s'^2 (1 - s'^2 / s^2), and x0 given z adds its own.
        """
        below = next((low for high, low in pairwise(self.sigmas) if math.isclose(high, level, rel_tol=1e-9)), 0.0)
        if below == 0:
            return torch.zeros_like(self.variance)
        s2, low2 = level**2, below**2
        fresh = 1 - low2 / s2
        variance = low2 * fresh + fresh**2 * self.variance * s2 / (self.variance + s2)
        beta = 1 - (1 + low2) / (1 + s2)
        posterior = beta * (low2 / (1 + low2)) / (s2 / (1 + s2))
        return (variance / (1 + low2) / posterior).log() / math.log(beta / posterior)


def sampled(
    schedule: Component[Any],
    sampler: Component[Any],
    settings: dict[str, Any],
    steps: int,
    unit: Tensor,
    *,
    std: Tensor = STD,
    noise: Callable[[int], Tensor] | None = None,
) -> tuple[Tensor, list[float]]:
    """Sample images from unit noise [B, 1, 1, 4] with the ideal network for `std`; return them and the sigmas."""
    built = schedule.build(schedule.params())
    low, high = built.sigma_range
    sigmas = built.grid(steps, kind=GRIDS.get(schedule.qualified, "native"), sigma_min=low, sigma_max=high, rho=7.0)
    watched: Any = Watched(built)
    denoiser = ModelDenoiser(Ideal(watched, sigmas, std), watched, 0)
    labels = torch.zeros(len(unit), dtype=torch.int64)
    method = sampler.build(sampler.params(steps=steps, **settings), schedule=built)

    def denoise(x: Tensor, sigma: float) -> Prediction:
        return denoiser(x, sigma, labels)

    return method(denoise, sigmas[0] * unit, sigmas, noise=noise or silent), sigmas


def silent(step: int) -> Tensor:
    raise AssertionError("a sampler without fresh noise asked for it")


# One flow

QUANTILES = torch.special.ndtri((torch.arange(8, dtype=torch.float64) + 0.5) / 8).view(8, 1, 1, 1).expand(8, 1, 1, 4)
COUNTS = (334, 1000)  # one less is a third of the other: both meet the same trained levels


def end_of_flow(x: Tensor, sigmas: list[float]) -> Tensor:
    """Solve the probability-flow ODE exactly from the maximum to the minimum noise level, then return E[x0 | x]."""
    low, high = sigmas[-2], sigmas[0]
    at_lowest = MEAN + (x - MEAN) * ((STD**2 + low**2) / (STD**2 + high**2)).sqrt()
    return MEAN + STD**2 / (STD**2 + low**2) * (at_lowest - MEAN)


def errors(*case: Any, **rest: Any) -> list[float]:
    """Return the root mean square distance from the end of the flow."""
    found = []
    for steps in COUNTS:
        images, sigmas = sampled(*case, steps, QUANTILES, **rest)
        found.append((images - end_of_flow(sigmas[0] * QUANTILES, sigmas)).square().mean().sqrt().item())
    return found


def order(errors: list[float]) -> float:
    return math.log(errors[0] / errors[1]) / math.log((COUNTS[1] - 1) / (COUNTS[0] - 1))


@pytest.mark.parametrize(("schedule", "sampler", "settings", "stated"), pairs(ODES))
def test_every_ode_sampler_follows_the_exact_flow(
    schedule: Component[Any], sampler: Component[Any], settings: dict[str, Any], stated: int
) -> None:
    found = errors(schedule, sampler, settings)
    assert abs(order(found) - stated) < 0.15
    assert found[-1] < {1: 2e-3, 2: 1e-5}[stated]


def test_a_slightly_wrong_network_ends_elsewhere() -> None:
    """Negative control: with a standard deviation wrong by 1 % nothing converges."""
    flow, heun = REGISTRIES.noise_schedules.get("flow"), REGISTRIES.samplers.get("heun")
    found = errors(flow, heun, {}, std=1.01 * STD)
    assert order(found) < 0.1
    assert found[-1] > 2e-3


def test_heun_in_flow_time_is_closer_than_in_sigma() -> None:
    flow, heun = REGISTRIES.noise_schedules.get("flow"), REGISTRIES.samplers.get("heun")
    native = errors(flow, heun, {"coordinates": "native"})
    assert 10 * native[-1] < errors(flow, heun, {})[-1]


# One distribution

DRAWS = 4000


def drawn(seed: int) -> Tensor:
    return torch.randn(DRAWS, 1, 1, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def standard_errors(images: Tensor) -> Tensor:
    """Return the errors of means and covariances of [n, 1, 1, 4] in standard errors, [20]."""
    points, std = images.flatten(1), STD.flatten()
    mean_errors = std / math.sqrt(DRAWS)
    covariance_errors = torch.outer(std, std) * (1 + torch.eye(4, dtype=torch.float64)).sqrt() / math.sqrt(DRAWS)
    of_mean = (points.mean(0) - MEAN.flatten()) / mean_errors
    of_covariance = (points.T.cov() - torch.diag(std**2)) / covariance_errors
    return torch.cat([of_mean, of_covariance.flatten()]).abs()


@pytest.mark.parametrize(("schedule", "sampler", "settings", "steps"), pairs(STOCHASTIC))
def test_every_stochastic_sampler_has_the_distribution_of_the_images(
    schedule: Component[Any], sampler: Component[Any], settings: dict[str, Any], steps: int
) -> None:
    case = (schedule, sampler, settings, steps, drawn(0))
    images, _ = sampled(*case, noise=lambda step: drawn(1 + step))
    assert standard_errors(images).max() < 5
    images, _ = sampled(*case, noise=lambda step: 1.2 * drawn(1 + step))
    assert standard_errors(images).max() > 5
