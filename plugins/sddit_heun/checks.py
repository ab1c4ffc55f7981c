"""What `sddit-run verify` measures of the samplers and of guidance: known flows, orders of convergence, published numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from sddit.diffusion.sigma_grids import spaced
from sddit.interfaces import CheckContext, Denoise, Measurement, Prediction, Sampler
from sddit.testing import fixtures as things
from sddit.verify.published import Stored, parity, published

MEAN, STD = 0.3, 0.5
"""Of the Gaussian images whose flow is known."""
ORDERS = {"euler": 1, "heun": 2}
STEPS = (128, 256, 512)
FIVE_ERRORS = 5.0
CHURN = {"churn": 40.0, "churn_min": 0.05, "churn_max": 50.0, "churn_noise": 1.003}
"""Those of the stored run."""

Noise = Callable[[int], Tensor]


def sampler(context: CheckContext, **settings: Any) -> Sampler:
    """The sampler whose check this is, with these settings."""
    assert context.component is not None
    made: Sampler = context.component.build(context.component.params(**settings), schedule=things.schedule())
    return made


def levels(steps: int) -> list[float]:
    return spaced(steps, kind="edm", sigma_min=0.002, sigma_max=80.0, rho=7.0)


def ideal(x: Tensor, sigma: float) -> Prediction:
    """The best denoiser of images N(MEAN, STD^2)."""
    return Prediction(MEAN + STD**2 / (STD**2 + sigma**2) * (x - MEAN))


def flow(x: Tensor, begin: float, end: float) -> Tensor:
    """Where the probability-flow ODE of those images takes x from one level to another."""
    return MEAN + (x - MEAN) * math.sqrt((STD**2 + end**2) / (STD**2 + begin**2))


def silent(step: int) -> Tensor:
    raise AssertionError("a sampler without churn asked for noise")


def prior() -> Tensor:
    """Quantiles of the noise at the highest level, [64, 1, 1, 1]."""
    u = (torch.arange(64, dtype=torch.float64) + 0.5) / 64
    return torch.as_tensor(80 * torch.special.ndtri(u)).view(-1, 1, 1, 1)


def convergence(context: CheckContext) -> Iterator[Measurement]:
    """How fast the error to the exact flow falls with the steps, without the last step, which goes to 0."""
    assert context.component is not None
    order = ORDERS[context.component.name]
    x, errors = prior(), []
    for steps in STEPS:
        end = sampler(context, steps=steps)(ideal, x, levels(steps)[:-1], noise=silent)
        errors.append(float((end - flow(x, 80.0, 0.002)).square().mean().sqrt()))
    for (coarse, fine), (error, smaller) in zip(pairwise(STEPS), pairwise(errors), strict=True):
        found = math.log2(error / smaller)
        yield Measurement(f"order of convergence, {coarse} to {fine} steps, from {order}", abs(found - order), 0.05)
    yield Measurement("error after 256 steps", errors[1], 2.5e-4 if order == 2 else 1e-2)


def trajectory(context: CheckContext) -> Iterator[Measurement]:
    """Every state on the way lies on the exact flow, and the last step gives the denoised image."""
    assert context.component is not None
    order, x, sigmas, off = ORDERS[context.component.name], prior(), levels(256), [0.0]
    states: list[Tensor] = []
    final = sampler(context, steps=256)(ideal, x, sigmas, noise=silent, callback=lambda step, x: states.append(x))
    for state, sigma in zip(states[:-1], sigmas[1:-1], strict=True):
        exact = flow(x, 80.0, sigma)
        off.append(float((state - exact).norm() / (exact - MEAN).norm()))
    yield Measurement("furthest from the exact flow on the way, relative", max(off), 1e-3 if order == 2 else 2e-2)
    last = float((final - ideal(states[-2], sigmas[-2]).x0).abs().max())
    yield Measurement("last step beside the denoised image", last, 1e-12)


def churned(context: CheckContext) -> Iterator[Measurement]:
    """Fresh noise on the way leaves samples with the data's mean and variance."""
    many = 16_384
    x = 80 * things.numbers(many, 1, 1, 1, key=3, dtype=torch.float64)
    drawn = sampler(context, steps=64, churn=40.0)(ideal, x, levels(64), noise=fresh(many))
    mean = abs(float(drawn.mean()) - MEAN) / (STD / math.sqrt(many))
    yield Measurement("mean of the samples, from the data's in standard errors", mean, FIVE_ERRORS)
    variance = abs(float(drawn.var()) / STD**2 - 1) * math.sqrt(many / 2)
    yield Measurement("variance of the samples, from the data's in standard errors", variance, FIVE_ERRORS)


def fresh(count: int) -> Noise:
    """Unit noise for each step."""
    return lambda step: things.numbers(count, 1, 1, 1, key=1000 + step, dtype=torch.float64)


def mixture(stored: Stored) -> Denoise:
    """The ideal denoiser of the stored mixture of Gaussians: E[x0 | x]."""
    weights, means, stds = (stored.inputs[f"mix_{name}"] for name in ("weights", "means", "stds"))

    def denoise(x: Tensor, sigma: float) -> Prediction:
        variance = stds**2 + sigma**2  # [k]
        distance = (x[:, None] - means).square().sum((2, 3, 4))  # [B, k]
        share = (weights.log() - means[0].numel() / 2 * variance.log() - distance / (2 * variance)).softmax(1)
        c2 = (stds**2)[:, None, None, None]
        each = (c2 * x[:, None] + sigma**2 * means) / (c2 + sigma**2)  # [B, k, C, H, W]
        return Prediction((share[:, :, None, None, None] * each).sum(1))

    return denoise


def published_runs(context: CheckContext) -> Iterator[Measurement]:
    """The published implementation's samples of a mixture, of 5, 18 and 40 steps, and with churn."""
    stored = published(context, "edm_a")
    denoise, latents, noises = mixture(stored), stored.inputs["latents"], stored.inputs["churn_noises"]
    ours = {
        f"heun/{steps}/final": sampler(context, steps=steps)(denoise, 80 * latents, levels(steps), noise=silent)
        for steps in (5, 18, 40)
    }
    with_churn = sampler(context, steps=18, **CHURN)
    ours["churn/final"] = with_churn(denoise, 80 * latents, levels(18), noise=lambda step: noises[step])
    yield from parity("edm_a", ours, stored)


class TwoFaced:
    """A denoiser that knows two labels and none: x times a number of the label."""

    num_classes = 2

    def __call__(self, x: Tensor, sigma: float, labels: Tensor) -> Prediction:
        return Prediction(x * (0.3 + labels.to(x))[:, None, None, None])


def linear(context: CheckContext) -> Iterator[Measurement]:
    """Scale 1 is the conditional prediction, 0 the unconditional one, and all else lies on the line through them."""
    assert context.component is not None
    component, x, labels = (
        context.component,
        things.numbers(4, 4, 3, 3, dtype=torch.float64),
        torch.tensor([0, 1, 0, 1]),
    )

    def guided(**settings: Any) -> Tensor:
        rule = component.build(component.params(**settings), schedule=things.schedule())
        made: Tensor = rule(TwoFaced(), labels)(x, 1.0).x0
        return made

    conditional, unconditional = (TwoFaced()(x, 1.0, of).x0 for of in (labels, torch.full_like(labels, 2)))
    for scale in (0.0, 1.0, 1.5, 4.0):
        line = unconditional + scale * (conditional - unconditional)
        yield Measurement(f"scale {scale:g} beside the line", largest(guided(scale=scale), line), 1e-12)
    some = guided(scale=4.0, channels=3)
    yield Measurement("3 of 4 channels: those that are guided", largest(some[:, :3], guided(scale=4.0)[:, :3]), 0)
    yield Measurement("3 of 4 channels: the one that is not", largest(some[:, 3:], conditional[:, 3:]), 0)
    outside = guided(scale=4.0, interval=(2.0, 3.0))
    yield Measurement("outside its interval beside the conditional", largest(outside, conditional), 0)


class ThousandSteps:
    """The time of a schedule of a thousand steps, whose levels are its times."""

    def t_from_sigma(self, sigma: Tensor) -> Tensor:
        return sigma

    def snap(self, sigma: Tensor) -> Tensor:
        return sigma

    def noise_fraction(self, t: Tensor) -> Tensor:
        return t / 1000


def scales(context: CheckContext, times: Sequence[float], **settings: Any) -> Tensor:
    """How far power-cosine guidance goes from the unconditional prediction to the conditional one, at each time of 1000."""
    assert context.component is not None
    params = {"shape": "power_cosine", **settings}
    rule = context.component.build(context.component.params(**params), schedule=ThousandSteps())
    x, label = torch.ones(1, 1, 1, 1, dtype=torch.float64), torch.tensor([0])
    conditional, unconditional = (TwoFaced()(x, 1.0, of).x0 for of in (label, label + 2))
    guided = torch.cat([rule(TwoFaced(), label)(x, t).x0 for t in times])
    return ((guided - unconditional) / (conditional - unconditional)).flatten()


def power_cosine(context: CheckContext) -> Iterator[Measurement]:
    """1 + (scale - 1) sin^2(pi (1 - t / T)^power / 2): the whole scale without noise, 1 at the most."""
    for power in (4.0, 1.0):
        closed = {0: 4.0, 500: 1 + 3 * math.sin(math.pi / 2 * 0.5**power) ** 2, 1000: 1.0}
        found = scales(context, list(closed), scale=4.0, power=power).tolist()
        for ours, (t, exact) in zip(found, closed.items(), strict=True):
            shown = f"power {power:g}, t / T = {t / 1000:g}: scale, from {exact:.4g}"
            yield Measurement(shown, abs(ours - exact), 1e-12)


def published_scales(context: CheckContext) -> Iterator[Measurement]:
    """The scales of the published MDTv2 and MDT at three timesteps."""
    for name in ("mdtv2_a", "mdtv1_a"):
        stored = published(context, name)
        times = stored.inputs["cfg_t"][:3].tolist()  # of the conditional half
        ours = {
            f"cfg_{scale}_pow_{power}_effective_scale": scales(context, times, scale=scale, power=power)
            for scale, power in ((4.0, 4.0), (3.8, 0.01))
        }
        yield from parity(name, ours, stored)


def largest(one: Tensor, two: Tensor) -> float:
    """The largest difference."""
    return float((one - two).abs().max())
