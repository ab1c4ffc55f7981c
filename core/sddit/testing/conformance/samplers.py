"""Check what holds for every sampler."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sddit.diffusion.sampling import noise_levels
from sddit.interfaces import Prediction
from sddit.testing import fixtures
from sddit.testing.case import Case

STD = 0.5
"""Standard deviation of the Gaussian images whose denoiser is known."""
FEW, MANY = 6, 4096


class Ideal:
    """The optimal denoiser of images N(0, STD^2): D(x; sigma) = x STD^2 / (STD^2 + sigma^2). Counts its calls."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, x: Tensor, sigma: float) -> Prediction:
        self.calls += 1
        return Prediction(x * STD**2 / (STD**2 + sigma**2), extra=torch.zeros_like(x))


def examine(case: Case) -> None:
    """Test a sampler with denoisers for which the result is known."""
    with case.trying("it was built"):
        schedule = fixtures.schedule()
        sampler, sigmas = case.build(schedule=schedule), noise_levels(case.params, schedule)
        with case.trying("it sampled"):
            examine_result(case, sampler, sigmas)
            examine_end(case, sampler, sigmas)
            examine_spread(case, sampler)


def sampled(
    sampler: Any, denoise: Any, sigmas: list[float], rows: slice = slice(None), count: int = FEW, **more: Any
) -> Tensor:
    """Return images sampled from fixed noise."""

    def noise(step: int) -> Tensor:
        return fixtures.numbers(count, 1, 2, 2, key=1000 + step, dtype=torch.float64)[rows]

    x = sigmas[0] * fixtures.numbers(count, 1, 2, 2, key=5, dtype=torch.float64)[rows]
    result: Tensor = sampler(denoise, x, sigmas, noise=noise, **more)
    return result


def examine_result(case: Case, sampler: Any, sigmas: list[float]) -> None:
    """Check shape, precision, repeatability, independence of images, the number of calls and the callback."""
    denoise, steps = Ideal(), []
    with case.no_global_randomness():
        x = sampled(sampler, denoise, sigmas, callback=lambda step, x: steps.append(step))
    if not case.shaped(x, (FEW, 1, 2, 2), "what it returns"):
        return
    case.expect(x.dtype == torch.float64, "its state is not float64", got=x)
    again = sampled(sampler, Ideal(), sigmas)
    case.expect(torch.equal(x, again), "it gives other images for the same noise", fix="draw from noise(step)")
    part = sampled(sampler, Ideal(), sigmas, rows=slice(2, 4))
    case.expect(torch.allclose(part, x[2:4]), "an image depends on the other images of the batch")
    case.equal(case.params.evaluations, denoise.calls, "`evaluations` is not how often it calls the network")
    in_order = bool(steps) and steps == sorted(steps)
    case.expect(in_order, "callback(step, x) is not called step by step", got=steps[:5])


def examine_end(case: Case, sampler: Any, sigmas: list[float]) -> None:
    """Check that a network that always predicts the same image gives exactly that image at level 0."""
    image = fixtures.numbers(FEW, 1, 2, 2, key=6, dtype=torch.float64)
    x = sampled(sampler, lambda x, sigma: Prediction(image, extra=torch.zeros_like(x)), sigmas)
    close = torch.allclose(x, image, rtol=1e-6, atol=1e-6)
    what = "it does not end at the network's image when the level reaches 0"
    case.expect(close, what, fix="the last step goes to sigma = 0")


def examine_spread(case: Case, sampler: Any) -> None:
    """Check that many images of the ideal denoiser have the standard deviation of the data."""
    low, high = fixtures.schedule().sigma_range
    sigmas = fixtures.schedule().grid(128, kind="edm", sigma_min=low, sigma_max=high, rho=7.0)
    std = sampled(sampler, Ideal(), sigmas, count=MANY).std().item()
    what = "the standard deviation of Gaussian images is wrong"
    case.expect(abs(std - STD) < 0.1 * STD, what, got=f"{std:.3f}", expect=f"{STD} within 10 %")
