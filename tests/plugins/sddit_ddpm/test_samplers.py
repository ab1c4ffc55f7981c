"""Test ancestral sampling and DDIM on data with a known reverse chain, and other samplers on a model of the noise."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

import sddit
from sddit.diffusion.preconditioning import ModelDenoiser
from sddit.interfaces import Denoise, Prediction
from sddit_ddpm.chain import Chain
from sddit_ddpm.params import AncestralParams, DDIMParams, DDPMParams
from sddit_ddpm.samplers import DDIM, Ancestral
from sddit_ddpm.schedule import DDPM

SCHEDULE = DDPM(DDPMParams())
LOW, HIGH = SCHEDULE.sigma_range
MEAN = torch.tensor([0.3, -0.2], dtype=torch.float64).view(1, 1, 1, 2)
STD = torch.tensor([0.5, 0.8], dtype=torch.float64).view(1, 1, 1, 2)
"""Data of two independent normal pixels."""


def levels(steps: int, kind: str = "native") -> list[float]:
    return SCHEDULE.grid(steps, kind=kind, sigma_min=LOW, sigma_max=HIGH, rho=7.0)


def drawn(count: int, key: int) -> Tensor:
    return torch.randn(count, 1, 1, 2, generator=torch.Generator().manual_seed(key), dtype=torch.float64)


def ideal(z: Tensor, sigma: float) -> Tensor:
    """E[x0 | z]."""
    return MEAN + STD**2 / (STD**2 + sigma**2) * (z - MEAN)


def silent(step: int) -> Tensor:
    raise AssertionError("a sampler without noise asked for some")


class Known:
    """The ideal denoiser, with the variance fraction that makes the reverse step from each of `sigmas` exact.

    x_{t-1} given x_t spreads by the posterior's variance times 1 + gain m, where m = Var(x0 | z) / sigma^2 is what is
    left of the noise's own variance when z is known.
    """

    def __init__(self, sigmas: Sequence[float]) -> None:
        self.chain = Chain(tuple(reversed(sigmas[:-1])))

    def __call__(self, z: Tensor, sigma: float) -> Prediction:
        t = self.chain.levels.index(sigma)
        m = STD**2 / (STD**2 + sigma**2)
        span = math.log(self.chain.betas[t] / self.chain.posterior_variances[t])
        v = 2 * torch.log1p(self.chain.gains[t] * m) / span - 1
        return Prediction(ideal(z, sigma), v.expand_as(z))


def standard_errors(x: Tensor) -> Tensor:
    """Return the errors of sample means and covariances of x [n, 1, 1, 2] in standard errors, [5]."""
    points, n, variance = x.flatten(1), len(x), STD.flatten() ** 2
    covariance = points.T.cov()
    means = (points.mean(0) - MEAN.flatten()) / (variance / n).sqrt()
    spreads = (covariance.diagonal() - variance) / (2 * variance**2 / n).sqrt()
    between = covariance[0, 1] / (variance.prod() / n).sqrt()
    return torch.cat([means, spreads, between[None]]).abs()


def ancestral(denoise: Denoise, sigmas: Sequence[float], count: int, **settings: Any) -> Tensor:
    sampler = Ancestral(AncestralParams(**settings))
    return sampler(denoise, sigmas[0] * drawn(count, 0), sigmas, noise=lambda step: drawn(count, 1 + step))


@pytest.mark.parametrize(("kind", "steps"), [("native", 12), ("native", 60), ("edm", 20)])
def test_the_reverse_chain_with_the_exact_variance_samples_the_data(kind: str, steps: int) -> None:
    """100,000 samples. Each step is exact at any length, so 12 suffice."""
    sigmas = levels(steps, kind)
    assert standard_errors(ancestral(Known(sigmas), sigmas, 100_000)).max() < 5


@pytest.mark.parametrize("v", [-1.0, 1.0])
def test_the_reverse_chain_with_a_wrong_variance_does_not(v: float) -> None:
    sigmas = levels(60)
    wrong = ancestral(lambda z, s: Prediction(ideal(z, s), torch.full_like(z, v)), sigmas, 100_000)
    assert standard_errors(wrong).max() > 5


# DDIM


def exact_flow(z: Tensor, begin: float, end: float) -> Tensor:
    """Solve the probability-flow ODE exactly from one noise level to another."""
    return MEAN + (z - MEAN) * ((STD**2 + end**2) / (STD**2 + begin**2)).sqrt()


def start(count: int) -> Tensor:
    u = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    return (HIGH * torch.special.ndtri(u)).view(-1, 1, 1, 1).expand(-1, 1, 1, 2)


def test_ddim_without_noise_is_a_first_order_method() -> None:
    z, errors = start(64), []
    for steps in (128, 256, 512):
        sigmas = [HIGH * (LOW / HIGH) ** (i / steps) for i in range(steps + 1)]
        end = DDIM(DDIMParams())(lambda z, s: Prediction(ideal(z, s)), z, sigmas, noise=silent)
        errors.append((end - exact_flow(z, HIGH, LOW)).square().mean().sqrt().item())
    orders = [math.log2(coarse / fine) for coarse, fine in pairwise(errors)]
    assert all(0.95 < order < 1.05 for order in orders), orders


def test_ddim_without_noise_is_eulers_method() -> None:
    sigmas, euler = levels(20), sddit.build("samplers", "euler", schedule=SCHEDULE)
    ours, theirs = (
        sampler(lambda z, s: Prediction(ideal(z, s)), start(16), sigmas, noise=silent)
        for sampler in (DDIM(DDIMParams()), euler)
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    heun = sddit.build("samplers", "heun", schedule=SCHEDULE)
    assert not torch.allclose(
        heun(lambda z, s: Prediction(ideal(z, s)), start(16), sigmas, noise=silent), ours, rtol=1e-3
    )


def test_ddim_with_eta_1_is_the_chain_with_the_posteriors_variance() -> None:
    sigmas, noise = levels(20), lambda step: drawn(64, 1 + step)

    def lowest(z: Tensor, sigma: float) -> Prediction:
        return Prediction(ideal(z, sigma), torch.full_like(z, -1.0))

    z = sigmas[0] * drawn(64, 0)
    chain = Ancestral(AncestralParams())(lowest, z, sigmas, noise=noise)
    torch.testing.assert_close(DDIM(DDIMParams(eta=1.0))(lowest, z, sigmas, noise=noise), chain, rtol=1e-12, atol=1e-12)
    assert not torch.allclose(DDIM(DDIMParams(eta=0.9))(lowest, z, sigmas, noise=noise), chain, rtol=1e-3)


# Models of the noise, of the velocity, of EDM's mixture of both


LEVEL: dict[str, Callable[[float], float]] = {
    "edm": lambda c_noise: math.exp(4 * c_noise),
    "flow": lambda c_noise: c_noise / (1 - c_noise),
    "ddpm": lambda c_noise: SCHEDULE.chain.levels[round(c_noise)],
}
"""The noise level of c_noise, by schedule."""


class IdealNetwork(nn.Module):
    """R = (D - c_skip x) / c_out, from the network's inputs c_in x and c_noise, one for the entire batch."""

    blocks = nn.ModuleList()

    def __init__(self, name: str, schedule: Any) -> None:
        super().__init__()
        self.level, self.schedule = LEVEL[name], schedule

    def forward(self, x: Tensor, c_noise: Tensor, labels: Tensor, **_: Any) -> tuple[Tensor, dict[str, Any], Any]:
        sigma = torch.tensor([self.level(c_noise[0].item())], dtype=torch.float64)
        t = self.schedule.t_from_sigma(sigma)
        c = self.schedule.scalings(t)
        x = x / c.c_in
        raw = (ideal(x / self.schedule.alpha(t), sigma.item()) - c.c_skip * x) / c.c_out
        return raw.repeat(1, self.schedule.outputs, 1, 1), {}, {}


def denoiser(name: str, steps: int = 60) -> tuple[Denoise, list[float]]:
    """Return a model of the schedule `name` and its sigmas."""
    schedule = sddit.build("noise_schedules", name)
    model = ModelDenoiser(IdealNetwork(name, schedule), schedule, 0)
    low, high = schedule.sigma_range
    sigmas = schedule.grid(steps, kind="edm", sigma_min=low, sigma_max=high, rho=7.0)
    return lambda z, sigma: model(z, sigma, torch.zeros(len(z), dtype=torch.int64)), sigmas


@pytest.mark.parametrize("name", LEVEL)
@pytest.mark.parametrize("sampler", ["ddim", "heun"])
def test_samplers_work_on_models_of_any_schedule(name: str, sampler: str) -> None:
    """Through the network of each schedule, or with the denoiser itself: the same images."""
    denoise, sigmas = denoiser(name)
    z, walk = sigmas[0] * drawn(50, 0), sddit.build("samplers", sampler, schedule=sddit.build("noise_schedules", name))
    found = walk(denoise, z, sigmas, noise=silent)
    known = walk(lambda z, s: Prediction(ideal(z, s)), z, sigmas, noise=silent)
    torch.testing.assert_close(found, known, rtol=1e-8, atol=1e-8)
    elsewhere = walk(lambda z, s: Prediction(ideal(z, 1.001 * s)), z, sigmas, noise=silent)
    assert not torch.allclose(elsewhere, known, rtol=1e-6, atol=1e-6)


def test_heun_on_a_model_of_the_noise_is_of_second_order() -> None:
    """From trained level to trained level; DDIM on the same levels is of first order."""
    exact, orders = exact_flow(start(64), HIGH, LOW), {}
    for name in ("heun", "ddim"):
        sampler, off = sddit.build("samplers", name, schedule=SCHEDULE), []
        for steps in (30, 60):
            denoise, sigmas = denoiser("ddpm", steps)
            off.append((sampler(denoise, start(64), sigmas[:-1], noise=silent) - exact).square().mean().sqrt().item())
        orders[name] = math.log2(off[0] / off[1])
    assert 1.8 < orders["heun"] < 2.3
    assert 0.8 < orders["ddim"] < 1.2


# Interface


def test_the_last_step_gives_the_denoised_image_without_noise() -> None:
    sigmas = levels(6)
    asked: list[int] = []

    def noise(step: int) -> Tensor:
        asked.append(step)
        return drawn(4, step)

    states: list[Tensor] = []
    known = Known(sigmas)
    for sampler in (Ancestral(AncestralParams()), DDIM(DDIMParams(eta=0.5))):
        states.clear()
        asked.clear()
        final = sampler(known, sigmas[0] * drawn(4, 9), sigmas, noise=noise, callback=lambda _, z: states.append(z))
        torch.testing.assert_close(final, ideal(states[-2], sigmas[-2]), rtol=1e-12, atol=1e-12)
        assert torch.equal(final, states[-1])
        assert len(states) == 6
        assert asked == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("sampler", [Ancestral(AncestralParams(clip=0.25)), DDIM(DDIMParams(clip=0.25))])
def test_a_clipped_estimate_stays_within_bounds(sampler: Any) -> None:
    sigmas = levels(20)
    final = sampler(Known(sigmas), sigmas[0] * drawn(500, 0), sigmas, noise=lambda step: drawn(500, 1 + step))
    assert final.abs().max().item() == 0.25


def test_ancestral_sampling_needs_a_variance() -> None:
    assert AncestralParams().needs_variance
    assert not DDIMParams().needs_variance
    with pytest.raises(ValueError, match="learned variance"):
        Ancestral(AncestralParams())(lambda z, s: Prediction(z), drawn(2, 0), levels(4), noise=lambda _: drawn(2, 1))


def test_evaluations_and_grids() -> None:
    assert (AncestralParams().evaluations, DDIMParams(steps=20).evaluations) == (250, 20)
    assert AncestralParams().grid == DDIMParams().grid == "native"


@pytest.mark.parametrize(
    ("params", "settings"),
    [
        (AncestralParams, {"clip": 0.0}),
        (AncestralParams, {"eta": 1.0}),
        (DDIMParams, {"eta": 1.1}),
        (DDIMParams, {"eta": -0.1}),
        (DDIMParams, {"steps": 1}),
    ],
)
def test_invalid_settings_are_rejected(params: Any, settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        params(**settings)
