"""Test the hybrid loss against textbook formulas: KL divergence, discretized likelihood, gradients."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from torch.distributions import Normal, kl_divergence

import sddit
from sddit.interfaces import Needs, Outputs, View, Want
from sddit_ddpm.loss import HALF_STEP, log_likelihood
from sddit_ddpm.params import DDPMParams, HybridParams
from sddit_ddpm.schedule import DDPM, Reverse

Look = Callable[..., View]
Loss = Callable[..., Tensor]
SCHEDULE = DDPM(DDPMParams())


def numbers(*shape: int, key: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(key), dtype=torch.float64).to(dtype)


def bound(hybrid: Loss, view: View, output: Tensor) -> Tensor:
    """Return L_vb only, [B]."""
    return hybrid(SCHEDULE, view, output) - hybrid(SCHEDULE, view, output, vb_weight=0.0)


# The bound


def test_the_kullback_leibler_term_in_the_chains_own_coordinates(look: Look, hybrid: Loss) -> None:
    """Means by eq. 7 of arXiv:2006.11239 from x_t and x0, variances by eq. 15 of arXiv:2102.09672, KL by torch."""
    t = torch.tensor([1, 2, 17, 250, 600, 999])
    view, output = look(SCHEDULE, numbers(6, 2, 3, 3), numbers(6, 2, 3, 3, key=1), t), numbers(6, 4, 3, 3, key=2)
    betas = torch.tensor(SCHEDULE.chain.betas, dtype=torch.float64)
    abar = (1 - betas).cumprod(0)
    beta, now, before = (x[:, None, None, None] for x in (betas[t], abar[t], abar[t - 1]))
    posterior = beta * (1 - before) / (1 - now)

    def mean(x0: Tensor) -> Tensor:
        return before.sqrt() * beta / (1 - now) * x0 + (1 - beta).sqrt() * (1 - before) / (1 - now) * view.x

    x0 = (view.x - (1 - now).sqrt() * output[:, :2]) / now.sqrt()
    fraction = (output[:, 2:] + 1) / 2
    variance = (fraction * beta.log() + (1 - fraction) * posterior.log()).exp()
    kl = kl_divergence(Normal(mean(view.x0), posterior.sqrt()), Normal(mean(x0), variance.sqrt()))
    expected = kl.mean((1, 2, 3)) / math.log(2)
    torch.testing.assert_close(bound(hybrid, view, output), expected, rtol=1e-8, atol=1e-10)
    assert not torch.allclose(bound(hybrid, view, output * 1.0001), expected, rtol=1e-5, atol=1e-7)


def likelihood(x0: Tensor, mean: Tensor, fraction: Tensor) -> Tensor:
    return log_likelihood(x0, x0 - mean, SCHEDULE.reverse(torch.zeros(len(x0), dtype=x0.dtype)), fraction)


def test_the_likelihoods_of_all_values_sum_to_one() -> None:
    """256 values, 8 means, variances between and beyond the two ends."""
    values = torch.linspace(-1, 1, 256, dtype=torch.float64)[:, None, None, None].expand(-1, 8, 1, 5)
    mean = torch.linspace(-1.1, 1.1, 8, dtype=torch.float64)[:, None, None]
    fraction = torch.linspace(-3, 3, 5, dtype=torch.float64)
    bins = likelihood(values, mean, fraction).exp()
    torch.testing.assert_close(bins.sum(0), torch.ones(8, 1, 5, dtype=torch.float64), rtol=0, atol=1e-9)
    assert (bins[:-1].sum(0) - 1).abs().max() > 0.1
    mode = values[bins[:, 2, 0, 2].argmax(), 0, 0, 0].item()
    assert abs(mode - mean[2].item()) <= HALF_STEP


def test_the_likelihood_is_that_of_a_normal_distribution() -> None:
    """Up to the published approximation of its distribution function, which is good to 2e-4."""
    x0, mean = torch.tensor([-1.0, 0.0, 3 / 255, 1.0]).double().view(4, 1, 1, 1), torch.tensor(0.004).double()
    fraction = torch.zeros((), dtype=torch.float64)
    reverse = SCHEDULE.reverse(torch.zeros(4, dtype=torch.float64))
    normal = Normal(mean, (reverse.log_low[0] / 2).exp())
    low, high = normal.cdf(x0 - HALF_STEP), normal.cdf(x0 + HALF_STEP)
    expected = torch.stack([high[0], high[1] - low[1], high[2] - low[2], 1 - low[3]]).clamp(min=1e-12)
    torch.testing.assert_close(likelihood(x0, mean, fraction).exp(), expected, rtol=0, atol=4e-4)
    assert (expected[1:3] > 0.1).all()


def test_float32_keeps_the_tails() -> None:
    """The probability of a bin 6 std from the mean; a difference of two distribution functions loses it."""
    x0 = torch.linspace(-0.9, 0.9, 64, dtype=torch.float64).view(64, 1, 1, 1)
    std = (SCHEDULE.reverse(torch.zeros(1, dtype=torch.float64)).log_low / 2).exp()
    mean = x0 - 6 * std
    fraction = torch.zeros(1, dtype=torch.float64)
    wide = likelihood(x0, mean, fraction)
    difference = (x0 - mean).float()
    reverse = SCHEDULE.reverse(torch.zeros(64))
    narrow = log_likelihood(x0.float(), difference, reverse, fraction.float())
    torch.testing.assert_close(narrow.double(), wide, rtol=1e-4, atol=0)
    p, m = (normal_cdf((difference + side) / std.float()) for side in (HALF_STEP, -HALF_STEP))
    assert not torch.allclose((p - m).clamp(min=1e-12).log().double(), wide, rtol=1e-2, atol=0)


def normal_cdf(a: Tensor) -> Tensor:
    """Return the normal distribution function as published code approximates it."""
    return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (a + 0.044715 * a**3)))


def test_single_precision_agrees_with_double_at_every_timestep(look: Look, hybrid: Loss) -> None:
    t = torch.tensor([0, 0, 1, 2, 10, 250, 999])
    x0, noise = numbers(7, 2, 4, 4).clamp(-1, 1), numbers(7, 2, 4, 4, key=1)
    output = numbers(7, 4, 4, 4, key=2)
    output[1, :2] = noise[1] + 0.01 * output[1, :2]
    wide = hybrid(SCHEDULE, look(SCHEDULE, x0, noise, t), output)
    narrow = hybrid(SCHEDULE, look(SCHEDULE, x0.float(), noise.float(), t), output.float())
    assert narrow.dtype == torch.float32
    torch.testing.assert_close(narrow.double(), wide, rtol=1e-5, atol=1e-6)


def test_gradients_are_finite_for_any_network_output(look: Look, hybrid: Loss) -> None:
    t = torch.tensor([0, 1, 500, 999])
    view = look(SCHEDULE, numbers(4, 1, 2, 2).float(), numbers(4, 1, 2, 2, key=1).float(), t)
    output = (100 * torch.tensor([-1.0, 1.0])).view(1, 2, 1, 1).repeat(4, 1, 2, 2).requires_grad_()
    value = hybrid(SCHEDULE, view, output, vb_trains="all")
    value.sum().backward()
    assert value.isfinite().all()
    assert output.grad is not None
    assert output.grad.isfinite().all()


def test_the_bound_is_minimal_at_the_variance_of_the_step(look: Look, hybrid: Loss) -> None:
    """With a mean squared error m of the noise, v learns a variance of x_{t-1} of the posterior's times 1 + gain m."""
    t, m = torch.tensor([1, 30, 500]), 0.7
    noise = numbers(3, 1, 2, 2)
    view = look(SCHEDULE, numbers(3, 1, 2, 2, key=1), noise, t)
    reverse: Reverse = SCHEDULE.reverse(t)

    def slope(factor: float) -> Tensor:
        v = 2 * torch.log1p(factor * m * reverse.gain) / reverse.log_range - 1
        v = v[:, None, None, None].expand_as(noise).clone().requires_grad_()
        bound(hybrid, view, torch.cat([noise + math.sqrt(m), v], dim=1)).sum().backward()
        assert v.grad is not None
        return v.grad.sum((1, 2, 3))

    assert slope(1.0).abs().max() < 1e-13
    assert (slope(1.01) > 1e-9).all()
    assert (slope(0.99) < -1e-9).all()


# Gradients of each part


def gradients(look: Look, hybrid: Loss, **settings: Any) -> tuple[Tensor, Tensor]:
    """Of the loss to the noise and to the variance, at every timestep from 0 to 5."""
    view = look(SCHEDULE, numbers(6, 1, 2, 2), numbers(6, 1, 2, 2, key=1), torch.arange(6))
    output = numbers(6, 2, 2, 2, key=2).requires_grad_()
    hybrid(SCHEDULE, view, output, **settings).sum().backward()
    assert output.grad is not None
    return output.grad[:, :1], output.grad[:, 1:]


def test_the_bound_trains_only_the_variance_by_default(look: Look, hybrid: Loss) -> None:
    mse, none = gradients(look, hybrid, vb_weight=0.0)
    noise, variance = gradients(look, hybrid)
    both, same = gradients(look, hybrid, vb_trains="all")
    assert torch.equal(noise, mse)
    assert not none.any()
    assert variance.abs().amax((1, 2, 3)).min() > 0
    assert torch.equal(same, variance)
    assert (both != mse).flatten(1).any(1).all()


def test_weights_scale_their_parts(look: Look, hybrid: Loss) -> None:
    view, output = look(SCHEDULE, numbers(4, 1, 2, 2), numbers(4, 1, 2, 2, key=1), torch.arange(4)), numbers(4, 2, 2, 2)
    parts = [hybrid(SCHEDULE, view, output, **{key: 0.0, "vb_trains": "all"}) for key in ("vb_weight", "mse_weight")]
    both = hybrid(SCHEDULE, view, output, mse_weight=0.3, vb_weight=0.001)
    torch.testing.assert_close(both, 0.3 * parts[0] + 0.001 * parts[1], rtol=1e-12, atol=0)


def test_min_snr_weights_only_the_squared_error(look: Look, hybrid: Loss) -> None:
    t = torch.tensor([0, 100, 400, 900])
    view, output = look(SCHEDULE, numbers(4, 1, 2, 2), numbers(4, 1, 2, 2, key=1), t), numbers(4, 2, 2, 2)
    snr = (SCHEDULE.alpha(t.double()) / SCHEDULE.sigma(t.double())) ** 2
    plain, weighed = (hybrid(SCHEDULE, view, output, weighting=w, vb_weight=0.0) for w in ("none", "min_snr"))
    torch.testing.assert_close(weighed, plain * snr.clamp(max=5) / snr, rtol=1e-12, atol=0)
    assert (snr > 5).any()
    assert (snr < 5).any()
    with_bound = hybrid(SCHEDULE, view, output, weighting="min_snr")
    torch.testing.assert_close(with_bound - weighed, bound(hybrid, view, output), rtol=1e-9, atol=1e-12)


def test_views_are_averaged_or_summed(look: Look, hybrid: Loss) -> None:
    x0, t = numbers(3, 1, 2, 2), torch.tensor([0, 5, 700])
    views = {name: look(SCHEDULE, x0, numbers(3, 1, 2, 2, key=key), t) for key, name in ((1, "full"), (2, "masked"))}
    given = {name: numbers(3, 2, 2, 2, key=7 + i) for i, name in enumerate(views)}
    separate = torch.stack([hybrid(SCHEDULE, views[name], given[name]) for name in views])
    outputs = {name: Outputs(raw=output[:, :1], extra=output[:, 1:]) for name, output in given.items()}
    context: Any = SimpleNamespace(schedule=SCHEDULE)
    added = sddit.build("losses", "hybrid", {"over_views": "sum"})(context, views, outputs)
    averaged = sddit.build("losses", "hybrid")(context, views, outputs)
    torch.testing.assert_close(added, separate.sum(0), rtol=1e-13, atol=0)
    torch.testing.assert_close(averaged, separate.mean(0), rtol=1e-13, atol=0)
    assert not torch.allclose(added, averaged)


def test_both_parts_are_logged(look: Look) -> None:
    view, output = look(SCHEDULE, numbers(4, 1, 2, 2), numbers(4, 1, 2, 2, key=1), torch.arange(4)), numbers(4, 2, 2, 2)
    term = sddit.build("losses", "hybrid")
    context: Any = SimpleNamespace(schedule=SCHEDULE)
    value = term(context, {"a": view}, {"a": Outputs(raw=output[:, :1], extra=output[:, 1:])})
    logged = term.diagnostics()
    assert logged.keys() == {"mse", "vb"}
    assert sum(part.item() for part in logged.values()) == pytest.approx(value.mean().item(), rel=1e-6)


# Interface


def test_it_needs_the_output_of_students() -> None:
    assert HybridParams().needs() == Needs(student=Want(output=True))


def test_unsupported_inputs_are_rejected(look: Look, hybrid: Loss) -> None:
    edm = sddit.build("noise_schedules", "edm")
    view, output = look(SCHEDULE, numbers(1, 1, 2, 2), numbers(1, 1, 2, 2), torch.ones(1)), numbers(1, 2, 2, 2)
    with pytest.raises(ValueError, match="`ddpm` noise schedule"):
        hybrid(edm, view, output)
    plain = DDPM(DDPMParams(learned_variance=False))
    with pytest.raises(ValueError, match="this model predicts none"):
        hybrid(plain, view, output)
    with pytest.raises(ValueError, match="network's output"):
        context: Any = SimpleNamespace(schedule=SCHEDULE)
        sddit.build("losses", "hybrid")(context, {"a": view}, {"a": Outputs()})


@pytest.mark.parametrize(
    "settings",
    [
        {"mse_weight": 0.0},
        {"mse_weight": 0.0, "vb_weight": 0.0, "vb_trains": "all"},
        {"vb_weight": -1.0},
        {"snr_gamma": 0.0},
        {"over_views": "max"},
    ],
)
def test_invalid_settings_are_rejected(settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        HybridParams(**settings)
