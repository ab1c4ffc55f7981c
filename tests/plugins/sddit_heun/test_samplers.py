"""Test Heun and Euler: published implementation, exact flows of known data, orders of convergence."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from sddit.diffusion.sigma_grids import sigma_grid
from sddit.interfaces import Denoise, Prediction
from sddit.testing import fixtures
from sddit_edm.flow import Flow
from sddit_edm.params import FlowParams
from sddit_heun.params import EulerParams, HeunParams
from sddit_heun.samplers import Euler, Heun, x0_and_eps


class Mixture:
    """A mixture of isotropic Gaussians: its density at any noise level, and its ideal denoiser."""

    def __init__(self, weights: Tensor, means: Tensor, stds: Tensor) -> None:
        self.weights, self.means, self.stds = weights, means, stds  # [k], [k, C, H, W], [k]
        self.calls: list[tuple[Tensor, float]] = []

    def log_parts(self, x: Tensor, sigma: float) -> Tensor:
        """Return ln of each component's part of p(x; sigma), [B, k]."""
        variance = self.stds**2 + sigma**2
        distance = (x[:, None] - self.means).square().sum((2, 3, 4))
        size = self.means[0].numel()
        return self.weights.log() - size / 2 * (2 * math.pi * variance).log() - distance / (2 * variance)

    def __call__(self, x: Tensor, sigma: float) -> Prediction:
        """E[x0 | x]."""
        self.calls.append((x, sigma))
        share = self.log_parts(x, sigma).softmax(1)  # [B, k]
        c2 = (self.stds**2)[:, None, None, None]
        each = (c2 * x[:, None] + sigma**2 * self.means) / (c2 + sigma**2)  # [B, k, C, H, W]
        return Prediction((share[:, :, None, None, None] * each).sum(1))


MEAN, STD = 0.3, 0.5
ONE = torch.ones(1, dtype=torch.float64)


def gaussian() -> Mixture:
    return Mixture(ONE, MEAN * ONE.view(1, 1, 1, 1), STD * ONE)


def two_gaussians() -> Mixture:
    means = torch.tensor([-1.0, 0.8], dtype=torch.float64).view(2, 1, 1, 1)
    return Mixture(torch.tensor([0.4, 0.6]).double(), means, torch.tensor([0.5, 0.3]).double())


def exact_flow(x: Tensor, begin: float, end: float) -> Tensor:
    """Solve the probability-flow ODE of N(MEAN, STD^2) exactly from one noise level to another."""
    return MEAN + (x - MEAN) * math.sqrt((STD**2 + end**2) / (STD**2 + begin**2))


def levels(steps: int) -> list[float]:
    return sigma_grid(steps, kind="edm", sigma_min=0.002, sigma_max=80.0, rho=7.0)


def no_noise(step: int) -> Tensor:
    raise AssertionError("a sampler without churn asked for noise")


def start(count: int) -> Tensor:
    """Return quantiles of the prior, [count, 1, 1, 1]."""
    u = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    return 80 * torch.special.ndtri(u).view(-1, 1, 1, 1)


def heun(**settings: Any) -> Heun:
    return Heun(HeunParams(**settings), schedule=fixtures.schedule())


def euler(**settings: Any) -> Euler:
    return Euler(EulerParams(**settings))


# The published implementation


def stored_mixture(inputs: dict[str, Tensor]) -> Mixture:
    return Mixture(inputs["mix_weights"], inputs["mix_means"], inputs["mix_stds"])


def close(found: Tensor, expected: Tensor) -> bool:
    return torch.allclose(found, expected, rtol=1e-11, atol=1e-12)


def test_the_denoiser_of_the_stored_mixture(published: Callable[[str], Any]) -> None:
    stored = published("edm_a")
    mixture = stored_mixture(stored.inputs)
    pairs = zip(stored.inputs["denoiser_x"], stored.inputs["denoiser_sigma"].tolist(), strict=True)
    found = torch.cat([mixture(x[None], sigma).x0 for x, sigma in pairs])
    assert close(found, stored.outputs["denoiser/D"])


@pytest.mark.parametrize("steps", [5, 18, 40])
def test_heun_of_the_published_implementation(published: Callable[[str], Any], steps: int) -> None:
    stored = published("edm_a")
    mixture, sigmas = stored_mixture(stored.inputs), levels(steps)
    x = stored.inputs["latents"] * sigmas[0]
    final = heun(steps=steps)(mixture, x, sigmas, noise=no_noise)
    assert close(final, stored.outputs[f"heun/{steps}/final"])
    assert [sigma for _, sigma in mixture.calls] == pytest.approx(
        stored.outputs[f"heun/{steps}/network_sigmas"].tolist(), rel=1e-12
    )
    assert len(mixture.calls) == HeunParams(steps=steps).evaluations == 2 * steps - 1
    if steps == 5:
        assert close(torch.stack([x for x, _ in mixture.calls]), stored.outputs["heun/5/network_inputs"])
    other = euler(steps=steps)(mixture, x, sigmas, noise=no_noise)
    assert not torch.allclose(other, final, rtol=1e-4)


CHURN = {"churn": 40.0, "churn_min": 0.05, "churn_max": 50.0, "churn_noise": 1.003}


def stored_churn(published: Callable[[str], Any], **settings: float) -> tuple[Any, Tensor, Mixture]:
    stored = published("edm_a")
    mixture, sigmas = stored_mixture(stored.inputs), levels(18)
    sampler = heun(steps=18, **{**CHURN, **settings})
    noises = stored.inputs["churn_noises"]
    return stored, sampler(mixture, stored.inputs["latents"] * 80, sigmas, noise=lambda step: noises[step]), mixture


def test_churn_of_the_published_implementation(published: Callable[[str], Any]) -> None:
    stored, final, mixture = stored_churn(published)
    assert close(final, stored.outputs["churn/final"])
    sigmas = stored.outputs["churn/network_sigmas"].tolist()
    assert [sigma for _, sigma in mixture.calls] == pytest.approx(sigmas, rel=1e-12)


@pytest.mark.parametrize(
    ("name", "value"), [("churn", 4.0), ("churn_min", 0.5), ("churn_max", 20.0), ("churn_noise", 1.0)]
)
def test_every_churn_setting_has_an_effect(published: Callable[[str], Any], name: str, value: float) -> None:
    stored, final, _ = stored_churn(published, **{name: value})
    assert not torch.allclose(final, stored.outputs["churn/final"], rtol=1e-4)


# Known data


@pytest.mark.parametrize("sigma", [0.01, 0.3, 2.0, 80.0])
def test_the_slope_is_minus_sigma_times_the_score(sigma: float) -> None:
    """Tweedie: grad log p(x; sigma) = (D - x) / sigma^2, by autograd of the density itself."""
    mixture = two_gaussians()
    x = torch.linspace(-2, 2, 41, dtype=torch.float64).mul(1 + sigma).view(-1, 1, 1, 1).requires_grad_()
    (score,) = torch.autograd.grad(mixture.log_parts(x, sigma).logsumexp(1).sum(), x)
    _, slope = x0_and_eps(mixture, x, sigma)
    torch.testing.assert_close(slope, -sigma * score, rtol=1e-9, atol=1e-9)
    assert not torch.allclose(slope, -1.001 * sigma * score, rtol=1e-5, atol=0)


def errors(
    sampler: Callable[..., Euler], *, data: Mixture, exact: Tensor, x: Tensor, counts: tuple[int, ...]
) -> list[float]:
    """Return root mean square distances from the exact flow at sigma_min, without the last step to 0."""
    ends = [sampler(steps=n)(data, x, levels(n)[:-1], noise=no_noise) for n in counts]
    return [(end - exact).square().mean().sqrt().item() for end in ends]


def orders(errors: list[float]) -> list[float]:
    return [math.log2(coarse / fine) for coarse, fine in pairwise(errors)]


class WrongCorrector(Heun):
    """Take the second slope at the level where the step started."""

    def step(self, denoise: Denoise, x: Tensor, sigmas: Sequence[float], i: int, noise: Any) -> Tensor:
        sigma, sigma_next = sigmas[i], sigmas[i + 1]
        x0, eps = x0_and_eps(denoise, x, sigma)
        _, eps_next = x0_and_eps(denoise, x0 + sigma_next * eps, sigma)
        return x + (sigma_next - sigma) * (eps + eps_next) / 2


@pytest.fixture(scope="module")
def mixture_flow() -> Tensor:
    """Return the exact flow of the mixture, with that many steps that Heun's error is negligible."""
    torch.set_num_threads(1)
    return heun(steps=8192)(two_gaussians(), start(64), levels(8192)[:-1], noise=no_noise)


@pytest.mark.parametrize("data", ["gaussian", "mixture"])
def test_orders_of_convergence(data: str, mixture_flow: Tensor) -> None:
    x, counts = start(64), (128, 256, 512)
    known = {"gaussian": (gaussian(), exact_flow(x, 80.0, 0.002)), "mixture": (two_gaussians(), mixture_flow)}
    case: dict[str, Any] = dict(zip(("data", "exact"), known[data], strict=True), x=x, counts=counts)

    assert all(0.95 < order < 1.05 for order in orders(errors(euler, **case)))
    second = errors(heun, **case)
    assert all(1.95 < order < 2.05 for order in orders(second))
    assert second[1] < 2.5e-4

    def wrong_corrector(**settings: Any) -> Heun:
        return WrongCorrector(HeunParams(**settings), schedule=fixtures.schedule())

    wrong = errors(wrong_corrector, **case)
    assert all(order < 1.5 for order in orders(wrong))
    assert wrong[1] > 2.5e-4


@pytest.mark.parametrize("sampler", [heun, euler])
def test_the_last_step_gives_the_denoised_image(sampler: Callable[..., Euler]) -> None:
    data, sigmas = two_gaussians(), levels(12)
    at_lowest = sampler(steps=12)(data, start(16), sigmas[:-1], noise=no_noise)
    final = sampler(steps=12)(data, start(16), sigmas, noise=no_noise)
    torch.testing.assert_close(final, data(at_lowest, sigmas[-2]).x0, rtol=1e-12, atol=1e-12)
    assert not torch.allclose(final, at_lowest, rtol=1e-12, atol=1e-12)


class Correlated:
    """Data with a full covariance: images of one channel and two pixels."""

    mean = torch.tensor([0.5, -0.3], dtype=torch.float64)
    covariance = torch.tensor([[1.0, 0.6], [0.6, 0.8]], dtype=torch.float64)

    def __call__(self, x: Tensor, sigma: float) -> Prediction:
        gain = self.covariance @ torch.linalg.inv(self.covariance + sigma**2 * torch.eye(2, dtype=torch.float64))
        return Prediction(self.mean.view(1, 1, 1, 2) + (x - self.mean) @ gain.T)


def standard_errors(x: Tensor) -> Tensor:
    """Return the errors of sample means and covariances of x [n, 1, 1, 2] from `Correlated` in standard errors, [5]."""
    points, n = x.flatten(1), len(x)
    c = Correlated.covariance
    mean_error = (c.diagonal() / n).sqrt()
    pairs = [(0, 0), (0, 1), (1, 1)]
    covariance = points.T.cov()
    of_covariance = [(covariance[i, j] - c[i, j]) / ((c[i, i] * c[j, j] + c[i, j] ** 2) / n).sqrt() for i, j in pairs]
    return torch.cat([(points.mean(0) - Correlated.mean) / mean_error, torch.stack(of_covariance)]).abs()


def drawn(count: int, seed: int) -> Tensor:
    return torch.randn(count, 1, 1, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_samples_are_distributed_as_the_data() -> None:
    """100,000 samples. 64 steps: at 32 Heun's own error, 2.5 % of the variance, already exceeds 5 standard errors."""
    x = 80 * drawn(100_000, 0)
    assert standard_errors(heun(steps=64)(Correlated(), x, levels(64), noise=no_noise)).max() < 5
    assert standard_errors(euler(steps=64)(Correlated(), x, levels(64), noise=no_noise)).max() > 5


def churned(**settings: float) -> Tensor:
    sampler = heun(steps=96, churn=20.0, churn_min=0.01, churn_max=50.0, **settings)
    return sampler(Correlated(), 80 * drawn(40_000, 0), levels(96), noise=lambda step: drawn(40_000, 1 + step))


def test_churn_keeps_the_distribution() -> None:
    assert standard_errors(churned()).max() < 5
    assert standard_errors(churned(churn_noise=1.1)).max() > 5


def test_churn_forgets_the_initial_noise() -> None:
    first = heun(steps=32)(gaussian(), start(64), levels(32), noise=no_noise)
    noise = torch.Generator().manual_seed(0)
    sampler = heun(steps=32, churn=12.0)
    second = sampler(
        gaussian(),
        start(64),
        levels(32),
        noise=lambda _: torch.randn(64, 1, 1, 1, generator=noise, dtype=torch.float64),
    )
    both = torch.stack([first.flatten(), second.flatten()])
    assert torch.corrcoef(both)[0, 1].abs() < 0.5


# Coordinates


def in_time(data: Mixture, x: Tensor, times: list[float], *, corrected: bool) -> Tensor:
    """Run Euler's or Heun's method on dx/dt = v(x, t) = eps - x0, x = (1 - t) x0 + t eps, as SiT (arXiv:2401.08740)."""

    def velocity(x: Tensor, t: float) -> Tensor:
        x0 = data(x / (1 - t), t / (1 - t)).x0
        return (x - x0) / t

    for t, t_next in pairwise(times):
        v = velocity(x, t)
        end = x + (t_next - t) * v
        x = x + (t_next - t) * (v + velocity(end, t_next)) / 2 if corrected and t_next > 0 else end
    return x


def test_in_the_coordinates_of_a_flow_heun_is_heun_in_its_time() -> None:
    times = [*torch.linspace(0.98, 0.02, 12, dtype=torch.float64).tolist(), 0.0]
    sigmas = [t / (1 - t) for t in times]
    unit = start(16) / 80
    schedule: Any = Flow(FlowParams())

    def ours(method: type[Euler], params: EulerParams) -> Tensor:
        return method(params, schedule=schedule)(two_gaussians(), sigmas[0] * unit, sigmas, noise=no_noise)

    heun_in_t = in_time(two_gaussians(), 0.98 * unit, times, corrected=True)
    euler_in_t = in_time(two_gaussians(), 0.98 * unit, times, corrected=False)
    assert close(ours(Heun, HeunParams(coordinates="native")), heun_in_t)
    assert not torch.allclose(ours(Heun, HeunParams()), heun_in_t, rtol=1e-3)
    assert close(ours(Euler, EulerParams()), euler_in_t)


def test_coordinates_are_equal_for_alpha_1() -> None:
    x, sigmas = start(16), levels(12)
    native = heun(coordinates="native")(two_gaussians(), x, sigmas, noise=no_noise)
    assert torch.equal(native, heun()(two_gaussians(), x, sigmas, noise=no_noise))


# Interface


def test_fresh_noise_is_requested_by_step_and_only_if_added() -> None:
    asked: list[int] = []

    def noise(step: int) -> Tensor:
        asked.append(step)
        return torch.zeros(4, 1, 1, 1)

    sigmas = [8.0, 4.0, 2.0, 1.0, 0.5, 0.0]
    final = heun(steps=5, churn=1.0, churn_min=1.0, churn_max=4.0)(gaussian(), start(4), sigmas, noise=noise)
    assert asked == [1, 2, 3]
    assert final.dtype == torch.float64


@pytest.mark.parametrize("sampler", [heun, euler])
def test_the_callback_gets_every_step(sampler: Callable[..., Euler]) -> None:
    calls: list[tuple[int, Tensor]] = []
    final = sampler(steps=4)(gaussian(), start(4), levels(4), noise=no_noise, callback=lambda *step: calls.append(step))
    assert [step for step, _ in calls] == [0, 1, 2, 3]
    assert torch.equal(calls[-1][1], final)


def test_evaluations_are_counted() -> None:
    for sampler, params in ((heun, HeunParams(steps=7)), (euler, EulerParams(steps=7))):
        data = gaussian()
        sampler(steps=7)(data, start(2), levels(7), noise=no_noise)
        assert len(data.calls) == params.evaluations
    assert (HeunParams(steps=7).evaluations, EulerParams(steps=7).evaluations) == (13, 7)


@pytest.mark.parametrize(
    "settings",
    [
        {"steps": 1},
        {"churn": -1.0},
        {"churn_noise": 0.0},
        {"churn_min": 2.0, "churn_max": 1.0},
        {"sigma_min": 2.0, "sigma_max": 1.0},
        {"churn_max": math.inf},
        {"coordinates": "polar"},
    ],
)
@pytest.mark.parametrize("params", [HeunParams, EulerParams])
def test_invalid_settings_are_rejected(params: type[EulerParams], settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        params(**settings)
