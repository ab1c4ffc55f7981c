"""Test sampling from keyed noise with the ideal network of EDM's preconditioning."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sddit.diffusion.preconditioning import ModelDenoiser, denoise_view
from sddit.diffusion.sampling import sample
from sddit.interfaces import Prediction, View
from sddit_edm.loss import Denoising
from sddit_edm.params import DenoisingParams, EDMParams
from sddit_edm.schedule import EDM

IMAGE = (1, 4, 4)
MEAN, STD, SIGMA_DATA = 0.3, 0.8, 0.5
SCHEDULE = EDM(EDMParams(sigma_data=SIGMA_DATA))


def ideal(x: Tensor, sigma: Tensor | float) -> Tensor:
    """Return D(x; sigma) for data N(MEAN, STD^2)."""
    return MEAN + STD**2 / (STD**2 + sigma**2) * (x - MEAN)


class IdealNetwork(nn.Module):
    """F = (D - c_skip x) / c_out, from the network's inputs c_in x and ln(sigma) / 4."""

    def forward(
        self, x: Tensor, c_noise: Tensor, labels: Tensor, **_: Any
    ) -> tuple[Tensor, dict[Any, Any], dict[Any, Any]]:
        sigma = torch.exp(4 * c_noise)[:, None, None, None]
        total = sigma**2 + SIGMA_DATA**2
        x = x * total.sqrt()
        return (ideal(x, sigma) - SIGMA_DATA**2 / total * x) * total.sqrt() / (sigma * SIGMA_DATA), {}, {}


def euler(denoise: Any, x: Tensor, sigmas: Any, *, noise: Any, callback: Any = None) -> Tensor:
    for sigma, sigma_next in pairwise(sigmas):
        x = x + (sigma_next - sigma) * (x - denoise(x, sigma).x0) / sigma
    return x


def plain(denoiser: Any, labels: Tensor) -> Any:
    return lambda x, sigma: denoiser(x, sigma, labels)


def take(denoiser: Any, *, batch: int = 100) -> Tensor:
    settings: dict[str, Any] = {"seed": 1, "sampler": euler, "guidance": plain, "image": IMAGE, "batch": batch}
    sigmas = SCHEDULE.grid(24, kind="edm", sigma_min=0.002, sigma_max=80.0, rho=7.0)
    return sample(denoiser, labels=torch.zeros(300, dtype=torch.int64), image_ids=range(300), sigmas=sigmas, **settings)


@pytest.mark.parametrize("sigma", [0.002, 0.3, 5.0, 80.0])
def test_the_ideal_network_is_the_ideal_denoiser(sigma: float) -> None:
    x = MEAN + math.hypot(STD, sigma) * torch.randn(8, *IMAGE, dtype=torch.float64)
    labels = torch.zeros(8, dtype=torch.int64)
    found = ModelDenoiser(IdealNetwork(), SCHEDULE, 0)(x, sigma, labels).x0
    torch.testing.assert_close(found, ideal(x, sigma), rtol=1e-12, atol=1e-12)
    elsewhere = ModelDenoiser(IdealNetwork(), EDM(EDMParams(sigma_data=0.6)), 0)(x, sigma, labels).x0
    assert not torch.allclose(elsewhere, ideal(x, sigma), rtol=1e-6, atol=1e-6)


def test_sampling_through_a_network_is_sampling_of_its_denoiser() -> None:
    class Ideal:
        num_classes = 0

        def __call__(self, x: Tensor, sigma: float, labels: Tensor) -> Prediction:
            return Prediction(ideal(x, sigma))

    through = take(ModelDenoiser(IdealNetwork(), SCHEDULE, 0))
    torch.testing.assert_close(through, take(Ideal()), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(
        take(ModelDenoiser(IdealNetwork(), SCHEDULE, 0), batch=7), through, rtol=1e-12, atol=1e-12
    )
    assert abs(through.mean().item() - MEAN) < 5 * STD / math.sqrt(through.numel())


def test_no_network_has_a_lower_loss() -> None:
    """The Bayes error of R is Var(x0 | x) / c_out^2, averaged over training noise levels; any change increases it."""
    generator = torch.Generator().manual_seed(0)
    x0 = MEAN + STD * torch.randn(20_000, *IMAGE, generator=generator, dtype=torch.float64)
    noise = torch.randn(x0.shape, generator=generator, dtype=torch.float64)
    t = SCHEDULE.t_from_uniform(torch.rand(len(x0), generator=generator, dtype=torch.float64))
    labels = torch.zeros(len(x0), dtype=torch.int64)
    view = View(network="student", x=SCHEDULE.perturb(x0, noise, t), t=t, labels=labels, x0=x0, noise=noise)
    term = Denoising(DenoisingParams(), grid=(2, 2), widths={}, image=IMAGE, num_classes=0)
    context: Any = type("Context", (), {"schedule": SCHEDULE})

    def excess(network: Any) -> tuple[float, float]:
        variance = STD**2 * t**2 / (STD**2 + t**2)
        each = term(context, {"a": view}, {"a": denoise_view(network, SCHEDULE, view)})
        each = each - variance / SCHEDULE.scalings(t).c_out ** 2
        return each.mean().item(), each.std().item() / math.sqrt(len(each))

    class Shifted(IdealNetwork):
        def forward(self, x: Tensor, c_noise: Tensor, labels: Tensor, **rest: Any) -> Any:
            raw, heads, taps = super().forward(x, c_noise, labels, **rest)
            return raw + 0.2, heads, taps

    mean, error = excess(IdealNetwork())
    assert abs(mean) < 5 * error
    mean, error = excess(Shifted())
    assert mean > 5 * error
    assert abs(mean - 0.2**2) < 5 * error
