"""Test the denoising loss: published implementation, other spaces, Bayes optimum."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from sddit.diffusion.preconditioning import denoise_view
from sddit.interfaces import Cost, Needs, Outputs, Scalings, View, ViewSpec, Want
from sddit_edm.loss import Denoising, native_target, per_token
from sddit_edm.params import DenoisingParams, EDMParams
from sddit_edm.schedule import EDM


class VPredicting:
    """alpha = cos t, sigma = sin t, and the network predicts v = alpha eps - sigma x0."""

    outputs = 1

    def alpha(self, t: Tensor) -> Tensor:
        return t.cos()

    def sigma(self, t: Tensor) -> Tensor:
        return t.sin()

    def perturb(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        return self.alpha(t)[:, None, None, None] * x0 + self.sigma(t)[:, None, None, None] * noise

    def scalings(self, t: Tensor) -> Scalings:
        return Scalings(t.cos(), -t.sin(), torch.ones_like(t), t)


def loss(
    schedule: Any, views: dict[str, View], outputs: dict[str, Outputs], /, *, grid: Any = (2, 2), **params: Any
) -> Tensor:
    term = Denoising(DenoisingParams(**params), grid=grid, widths={}, image=(3, 4, 4), num_classes=2)
    context: Any = SimpleNamespace(schedule=schedule)
    return term(context, views, outputs)


def look(schedule: Any, x0: Tensor, noise: Tensor, t: Tensor, **rest: Any) -> View:
    labels = torch.zeros(len(x0), dtype=torch.int64)
    settings: dict[str, Any] = {"network": "student", **rest}
    return View(x=schedule.perturb(x0, noise, t), t=t, labels=labels, x0=x0, noise=noise, **settings)


def stub(x: Tensor, c_noise: Tensor, labels: Tensor, **_: Any) -> Any:
    """Return the network of the stored numbers."""
    return 0.7 * torch.tanh(1.3 * x) + 0.1 * c_noise[:, None, None, None], {}, {}


def random_case(schedule: Any, *, dtype: torch.dtype = torch.float64, **rest: Any) -> tuple[View, Outputs]:
    generator = torch.Generator().manual_seed(3)
    x0, noise = torch.randn(2, 5, 3, 4, 4, generator=generator, dtype=torch.float64).to(dtype).unbind(0)
    view = look(schedule, x0, noise, torch.linspace(0.1, 1.4, 5, dtype=dtype), **rest)
    return view, denoise_view(stub, schedule, view)


@pytest.mark.parametrize("sigma_data", [0.5, 0.9])
def test_the_published_implementation(published: Callable[[str], Any], sigma_data: float) -> None:
    stored = published("edm_a")
    schedule = EDM(EDMParams(sigma_data=sigma_data))
    t = stored.outputs[f"loss/{sigma_data}/weight_sigma"][1]
    view = look(schedule, stored.inputs["images"], stored.inputs["noise_unit"], t)
    out = denoise_view(stub, schedule, view)
    torch.testing.assert_close(out.x0, stored.outputs[f"loss/{sigma_data}/denoised"], rtol=1e-12, atol=1e-13)

    expected = stored.outputs[f"loss/{sigma_data}/per_sample_mean"]
    found = loss(schedule, {"a": view}, {"a": out})
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=0)
    elementwise = (out.raw - native_target(schedule, view, torch.float64)) ** 2
    torch.testing.assert_close(elementwise, stored.outputs[f"loss/{sigma_data}/elementwise"], rtol=1e-10, atol=1e-13)
    assert not torch.allclose(loss(schedule, {"a": view}, {"a": out}, space="x0"), expected, rtol=1e-2)


@pytest.mark.parametrize("schedule", [EDM(EDMParams()), VPredicting()])
def test_the_target_yields_x0(schedule: Any) -> None:
    view, _ = random_case(schedule)
    c = schedule.scalings(view.t)
    target = native_target(schedule, view, torch.float64)
    x0 = c.c_skip[:, None, None, None] * view.x + c.c_out[:, None, None, None] * target
    torch.testing.assert_close(x0, view.x0, rtol=1e-12, atol=1e-13)
    if isinstance(schedule, VPredicting):
        v = (
            schedule.alpha(view.t)[:, None, None, None] * view.noise
            - schedule.sigma(view.t)[:, None, None, None] * view.x0
        )
        torch.testing.assert_close(target, v, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("schedule", [EDM(EDMParams()), VPredicting()])
def test_each_space_is_the_error_of_its_quantity(schedule: Any) -> None:
    view, out = random_case(schedule)
    alpha, sigma = (f(view.t)[:, None, None, None] for f in (schedule.alpha, schedule.sigma))
    noise = (view.x - alpha * out.x0) / sigma
    size = (alpha**2 + sigma**2).sqrt()
    errors = {
        "native": out.raw - native_target(schedule, view, torch.float64),
        "x0": out.x0 - view.x0,
        "eps": noise - view.noise,
        "v": (alpha * noise - sigma * out.x0) / size - (alpha * view.noise - sigma * view.x0) / size,
    }
    found = {space: loss(schedule, {"a": view}, {"a": out}, space=space) for space in errors}
    for space, error in errors.items():
        torch.testing.assert_close(found[space], (error**2).mean((1, 2, 3)), rtol=1e-11, atol=0)
    assert not torch.allclose(found["x0"], found["eps"], rtol=1e-2)
    assert not torch.allclose(found["v"], found["x0"], rtol=1e-2)
    assert torch.allclose(found["v"], found["native"], rtol=1e-9) is isinstance(schedule, VPredicting)


class EpsPredicting:
    """DDPM's thousand times with beta from 1e-4 to 0.02 (arXiv:2006.11239), and the network predicts the noise."""

    def __init__(self) -> None:
        self.abar = (1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)).cumprod(0)

    def alpha(self, t: Tensor) -> Tensor:
        return self.abar[t.long()].sqrt()

    def sigma(self, t: Tensor) -> Tensor:
        return (1 - self.abar[t.long()]).sqrt()

    def perturb(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        return self.alpha(t)[:, None, None, None] * x0 + self.sigma(t)[:, None, None, None] * noise

    def scalings(self, t: Tensor) -> Scalings:
        alpha, sigma = self.alpha(t), self.sigma(t)
        return Scalings(1 / alpha, -sigma / alpha, torch.ones_like(alpha), t)


def test_min_snr_of_the_published_implementation(published: Callable[[str], Any]) -> None:
    stored, schedule = published("mdtv2_a"), EpsPredicting()
    inputs = stored.inputs
    view = look(schedule, inputs["loss_x0"], inputs["loss_noise"], inputs["loss_t"])
    out = Outputs(raw=inputs["loss_output"][:, :4])
    plain = loss(schedule, {"a": view}, {"a": out})
    expected = stored.outputs["train/mse_weight"]
    weight = loss(schedule, {"a": view}, {"a": out}, weighting="min_snr") / plain
    torch.testing.assert_close(weight, expected, rtol=1e-9, atol=0)
    torch.testing.assert_close(weight * plain, stored.outputs["train/mse"], rtol=1e-9, atol=0)
    other = loss(schedule, {"a": view}, {"a": out}, weighting="min_snr", snr_gamma=5.01) / plain
    assert not torch.allclose(other, expected, rtol=1e-4)


@pytest.mark.parametrize("schedule", [EDM(EDMParams()), VPredicting()])
def test_min_snr_is_one_objective_for_every_space(schedule: Any) -> None:
    """min(SNR, gamma) on x0, over SNR on the noise, over SNR + 1 on v: section 3.4 of arXiv:2303.09556."""
    view, out = random_case(schedule)
    snr = (schedule.alpha(view.t) / schedule.sigma(view.t)) ** 2
    capped = snr.clamp(max=2.0)
    assert (snr > 2.0).any()
    assert (snr < 2.0).any()
    found = loss(schedule, {"a": view}, {"a": out}, weighting="min_snr", snr_gamma=2.0)
    for space, weight in (("x0", capped), ("eps", capped / snr), ("v", capped / (snr + 1))):
        of_space = weight * loss(schedule, {"a": view}, {"a": out}, space=space)
        torch.testing.assert_close(found, of_space, rtol=1e-11, atol=0)
        again = loss(schedule, {"a": view}, {"a": out}, space=space, weighting="min_snr", snr_gamma=2.0)
        assert torch.equal(found, again)
    assert not torch.allclose(found, loss(schedule, {"a": view}, {"a": out}), rtol=1e-2)


def test_edm_weights_the_error_of_x0_by_lambda() -> None:
    schedule = EDM(EDMParams(sigma_data=0.7))
    view, out = random_case(schedule)
    weight = (view.t**2 + 0.49) / (view.t * 0.7) ** 2
    weighted = weight * loss(schedule, {"a": view}, {"a": out}, space="x0")
    torch.testing.assert_close(loss(schedule, {"a": view}, {"a": out}), weighted, rtol=1e-12, atol=0)


def test_a_network_of_zeros_has_a_loss_of_one() -> None:
    """E |R*|^2 = 1 per number if Var x0 = sigma_data^2; for Gaussian x0 no network does better."""
    schedule = EDM(EDMParams(sigma_data=0.5))
    generator = torch.Generator().manual_seed(0)
    x0 = 0.5 * torch.randn(4000, 4, 8, 8, generator=generator, dtype=torch.float64)
    noise = torch.randn(x0.shape, generator=generator, dtype=torch.float64)
    t = schedule.t_from_uniform(torch.rand(4000, generator=generator, dtype=torch.float64))
    zeros = Outputs(raw=torch.zeros_like(x0))

    def mean_and_error(x0: Tensor) -> tuple[float, float]:
        per_sample = loss(schedule, {"a": look(schedule, x0, noise, t)}, {"a": zeros}, grid=(4, 4))
        return per_sample.mean().item(), per_sample.std().item() / math.sqrt(len(per_sample))

    mean, error = mean_and_error(x0)
    assert error < 2e-3
    assert abs(mean - 1) < 5 * error
    wrong_mean, wrong_error = mean_and_error(1.1 * x0)
    assert abs(wrong_mean - 1) > 5 * wrong_error


def test_no_cancellation_in_float32_at_low_noise() -> None:
    schedule = EDM(EDMParams())
    x0, noise = torch.randn(2, 6, 3, 4, 4, generator=torch.Generator().manual_seed(1)).unbind(0)
    t = torch.full((6,), 0.002)
    view = look(schedule, x0, noise, t)
    exact = native_target(schedule, look(schedule, x0.double(), noise.double(), t.double()), torch.float64)

    def worst(target: Tensor) -> float:
        return ((target - exact).abs() / exact.abs().clamp(min=1)).max().item()

    c = schedule.scalings(t)
    naive = (x0 - c.c_skip[:, None, None, None] * view.x) / c.c_out[:, None, None, None]
    assert worst(native_target(schedule, view, torch.float32)) < 1e-6
    assert worst(naive) > 1e-5


def test_loss_over_visible_tokens_only() -> None:
    schedule = EDM(EDMParams())
    visible = torch.tensor([[0, 3], [1, 2], [0, 1], [2, 3], [1, 3]])
    view, out = random_case(schedule, visible=visible)
    squared = (out.raw - native_target(schedule, view, torch.float64)) ** 2
    patches = [squared[:, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2] for row in (0, 1) for column in (0, 1)]
    by_hand = torch.stack([torch.stack([patches[n][b].mean() for n in visible[b]]).mean() for b in range(5)])
    found = loss(schedule, {"a": view}, {"a": out}, tokens="visible")
    torch.testing.assert_close(found, by_hand, rtol=1e-13, atol=0)

    everything = loss(schedule, {"a": view}, {"a": out})
    assert not torch.allclose(found, everything, rtol=1e-2)
    view.visible = None
    assert torch.equal(loss(schedule, {"a": view}, {"a": out}, tokens="visible"), everything)


def test_tokens_are_ordered_row_by_row() -> None:
    image = torch.arange(12.0).view(1, 1, 2, 6).expand(1, 2, 2, 6)
    assert per_token(image, (2, 3)).tolist() == [[0.5, 2.5, 4.5, 6.5, 8.5, 10.5]]


def test_views_are_averaged() -> None:
    schedule = EDM(EDMParams())
    view, out = random_case(schedule)
    other, other_out = random_case(EDM(EDMParams(sigma_data=0.9)))
    views, outputs = {"a": view, "b": other}, {"a": out, "b": other_out}
    separate = [loss(schedule, {name: views[name]}, {name: outputs[name]}) for name in views]
    torch.testing.assert_close(loss(schedule, views, outputs), (separate[0] + separate[1]) / 2)
    assert not torch.allclose(separate[0], separate[1], rtol=1e-3)


def test_a_learned_variance_is_not_read() -> None:
    schedule = EDM(EDMParams())
    view, out = random_case(schedule)
    with_extra = Outputs(raw=out.raw, x0=out.x0, extra=torch.full_like(out.raw, math.nan))
    assert torch.equal(loss(schedule, {"a": view}, {"a": with_extra}), loss(schedule, {"a": view}, {"a": out}))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("space", ["native", "x0", "eps", "v"])
def test_one_value_per_sample_with_a_gradient(dtype: torch.dtype, space: str) -> None:
    schedule = EDM(EDMParams())
    view, out = random_case(schedule, dtype=dtype)
    raw = out.raw.clone().requires_grad_()
    found = loss(schedule, {"a": view}, {"a": Outputs(raw=raw, x0=out.x0)}, space=space)
    assert (found.shape, found.dtype) == ((5,), dtype)
    (gradient,) = torch.autograd.grad(found.sum(), raw)
    assert gradient.isfinite().all()
    assert gradient.abs().amin() > 0


def test_a_missing_output_is_named() -> None:
    schedule = EDM(EDMParams())
    view, _ = random_case(schedule)
    with pytest.raises(ValueError, match="needs the network's output"):
        loss(schedule, {"a": view}, {"a": Outputs()})


def test_needs_and_cost() -> None:
    params = DenoisingParams()
    assert params.needs() == Needs(student=Want(output=True))
    nothing: Any = None
    assert params.cost(nothing, nothing, ViewSpec("a"), 4) == Cost()
    assert not params.couples_samples
    for wrong in ({"space": "score"}, {"tokens": "hidden"}, {"weighting": "snr"}, {"snr_gamma": 0.0}):
        with pytest.raises(ValidationError):
            DenoisingParams(**wrong)
