"""Check what holds for every sampler."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sddit.diffusion.sampling import noise_levels
from sddit.interfaces import Prediction
from sddit.testing import fixtures as things
from sddit.testing.kit import Case, Findings

SD = 0.5
"""Standard deviation of the Gaussian images whose denoiser is known."""
FEW, MANY = 6, 4096


class Ideal:
    """The best denoiser of images N(0, SD^2): D(x; sigma) = x SD^2 / (SD^2 + sigma^2). Counts its calls."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, x: Tensor, sigma: float) -> Prediction:
        self.calls += 1
        return Prediction(x * SD**2 / (SD**2 + sigma**2), extra=torch.zeros_like(x))


def examine(case: Case, findings: Findings) -> None:
    """Try a sampler where the answer is known."""
    with findings.trying("it was built"):
        sampler = case.build(schedule=things.schedule())
        sigmas = noise_levels(case.params, things.schedule())
        with findings.trying("it sampled"):
            examine_result(case, sampler, sigmas, findings)
            examine_end(sampler, sigmas, findings)
            examine_spread(sampler, findings)


def drawn(
    sampler: Any, denoise: Any, sigmas: list[float], rows: slice = slice(None), count: int = FEW, **more: Any
) -> Tensor:
    """Images sampled from fixed noise."""
    x = sigmas[0] * things.numbers(count, 1, 2, 2, key=5, dtype=torch.float64)[rows]

    def noise(step: int) -> Tensor:
        return things.numbers(count, 1, 2, 2, key=1000 + step, dtype=torch.float64)[rows]

    result: Tensor = sampler(denoise, x, sigmas, noise=noise, **more)
    return result


def examine_result(case: Case, sampler: Any, sigmas: list[float], findings: Findings) -> None:
    """Shape, precision, repeatability, no influence between images, the calls it states, the callback."""
    denoise, steps = Ideal(), []
    with things.no_global_randomness(findings, "it"):
        x = drawn(sampler, denoise, sigmas, callback=lambda step, x: steps.append(step))
    if not things.is_shaped(findings, x, (FEW, 1, 2, 2), "what it returns"):
        return
    findings.expect(x.dtype == torch.float64, "its state is not float64", got=things.shape_of(x))
    again = drawn(sampler, Ideal(), sigmas)
    findings.expect(torch.equal(x, again), "it gives other images for the same noise", fix="draw from noise(step)")
    part = drawn(sampler, Ideal(), sigmas, rows=slice(2, 4))
    findings.expect(torch.allclose(part, x[2:4]), "an image depends on the other images of the batch")
    stated = str(case.params.evaluations)
    findings.expect(
        denoise.calls == case.params.evaluations,
        "`evaluations` is not how often it calls the network",
        got=stated,
        expect=str(denoise.calls),
    )
    findings.expect(
        bool(steps) and steps == sorted(steps), "callback(step, x) is not called step by step", got=str(steps[:5])
    )


def examine_end(sampler: Any, sigmas: list[float], findings: Findings) -> None:
    """Check that a network that always predicts the same image gives exactly that image at level 0."""
    image = things.numbers(FEW, 1, 2, 2, key=6, dtype=torch.float64)
    x = drawn(sampler, lambda x, sigma: Prediction(image, extra=torch.zeros_like(x)), sigmas)
    close = torch.allclose(x, image, rtol=1e-6, atol=1e-6)
    findings.expect(
        close, "it does not end at the network's image when the level reaches 0", fix="the last step goes to sigma = 0"
    )


def examine_spread(sampler: Any, findings: Findings) -> None:
    """Many images of the ideal denoiser have the spread of the data."""
    low, high = things.schedule().sigma_range
    sigmas = things.schedule().grid(128, kind="edm", sigma_min=low, sigma_max=high, rho=7.0)
    spread = drawn(sampler, Ideal(), sigmas, count=MANY).std().item()
    findings.expect(
        abs(spread - SD) < 0.1 * SD,
        "Gaussian images come out with a wrong spread",
        got=f"{spread:.3f}",
        expect=f"{SD} within 10 %",
    )
