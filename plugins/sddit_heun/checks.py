"""Measure samplers and guidance for `sddit-run verify`: known flows, orders of convergence, published numbers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from sddit.diffusion.sampling import Noise
from sddit.diffusion.sigma_grids import sigma_grid
from sddit.interfaces import CheckContext, Denoise, Measurement, Prediction, Sampler
from sddit.testing import fixtures
from sddit.verify.published import Stored, parity, published

MEAN, STD = 0.3, 0.5
"""Mean and std of Gaussian images, whose flow is known."""
ORDERS = {"euler": 1, "heun": 2}
STEPS = (128, 256, 512)
FIVE_ERRORS = 5.0
CHURN = {"churn": 40.0, "churn_min": 0.05, "churn_max": 50.0, "churn_noise": 1.003}
"""Settings of the stored run."""


def build_sampler(context: CheckContext, **settings: Any) -> Sampler:
    """Build the checked sampler with these settings."""
    assert context.component is not None
    sampler: Sampler = context.component.build(context.component.params(**settings), schedule=fixtures.schedule())
    return sampler


def edm_sigmas(steps: int) -> list[float]:
    return sigma_grid(steps, kind="edm", sigma_min=0.002, sigma_max=80.0, rho=7.0)


def ideal(x: Tensor, sigma: float) -> Prediction:
    """Return the ideal denoiser's estimate for images N(MEAN, STD^2)."""
    return Prediction(MEAN + STD**2 / (STD**2 + sigma**2) * (x - MEAN))


def flow(x: Tensor, sigma: float, sigma_next: float) -> Tensor:
    """Solve the probability-flow ODE of those images from sigma to sigma_next exactly."""
    return MEAN + (x - MEAN) * math.sqrt((STD**2 + sigma_next**2) / (STD**2 + sigma**2))


def no_noise(step: int) -> Tensor:
    raise AssertionError("a sampler without churn asked for noise")


def prior() -> Tensor:
    """Return quantiles of the noise at the maximum level, [64, 1, 1, 1]."""
    u = (torch.arange(64, dtype=torch.float64) + 0.5) / 64
    return torch.as_tensor(80 * torch.special.ndtri(u)).view(-1, 1, 1, 1)


def convergence(context: CheckContext) -> Iterator[Measurement]:
    """Measure the order of convergence to the exact flow, without the last step, which goes to 0."""
    assert context.component is not None
    order = ORDERS[context.component.name]
    x, errors = prior(), []
    for steps in STEPS:
        end = build_sampler(context, steps=steps)(ideal, x, edm_sigmas(steps)[:-1], noise=no_noise)
        errors.append(float((end - flow(x, 80.0, 0.002)).square().mean().sqrt()))
    for (coarse, fine), (error, smaller) in zip(pairwise(STEPS), pairwise(errors), strict=True):
        found = math.log2(error / smaller)
        yield Measurement(f"order of convergence, {coarse} to {fine} steps, from {order}", abs(found - order), 0.05)
    yield Measurement("error after 256 steps", errors[1], 2.5e-4 if order == 2 else 1e-2)


def trajectory(context: CheckContext) -> Iterator[Measurement]:
    """Measure that all states follow the exact flow, and that the last step returns the denoised image."""
    assert context.component is not None
    order, x, sigmas, errors = ORDERS[context.component.name], prior(), edm_sigmas(256), [0.0]
    states: list[Tensor] = []
    final = build_sampler(context, steps=256)(
        ideal, x, sigmas, noise=no_noise, callback=lambda step, x: states.append(x)
    )
    for state, sigma in zip(states[:-1], sigmas[1:-1], strict=True):
        exact = flow(x, 80.0, sigma)
        errors.append(float((state - exact).norm() / (exact - MEAN).norm()))
    yield Measurement("maximum distance from the exact flow, relative", max(errors), 1e-3 if order == 2 else 2e-2)
    last = float((final - ideal(states[-2], sigmas[-2]).x0).abs().max())
    yield Measurement("last step, difference from the denoised image", last, 1e-12)


def churned(context: CheckContext) -> Iterator[Measurement]:
    """Measure that samples with churn have the mean and variance of the data."""
    count = 16_384
    x = 80 * fixtures.numbers(count, 1, 1, 1, key=3, dtype=torch.float64)
    drawn = build_sampler(context, steps=64, churn=40.0)(ideal, x, edm_sigmas(64), noise=fresh(count))
    mean = abs(float(drawn.mean()) - MEAN) / (STD / math.sqrt(count))
    yield Measurement("mean of the samples, from the data's in standard errors", mean, FIVE_ERRORS)
    variance = abs(float(drawn.var()) / STD**2 - 1) * math.sqrt(count / 2)
    yield Measurement("variance of the samples, from the data's in standard errors", variance, FIVE_ERRORS)


def fresh(count: int) -> Noise:
    """Return unit noise for each step."""
    return lambda step: fixtures.numbers(count, 1, 1, 1, key=1000 + step, dtype=torch.float64)


def mixture(stored: Stored) -> Denoise:
    """Return the ideal denoiser of the stored mixture of Gaussians: E[x0 | x]."""
    weights, means, stds = (stored.inputs[f"mix_{name}"] for name in ("weights", "means", "stds"))

    def denoise(x: Tensor, sigma: float) -> Prediction:
        variance = stds**2 + sigma**2  # [k]
        distance = (x[:, None] - means).square().sum((2, 3, 4))  # [B, k]
        posterior = (weights.log() - means[0].numel() / 2 * variance.log() - distance / (2 * variance)).softmax(1)
        c2 = (stds**2)[:, None, None, None]
        each = (c2 * x[:, None] + sigma**2 * means) / (c2 + sigma**2)  # [B, k, C, H, W]
        return Prediction((posterior[:, :, None, None, None] * each).sum(1))

    return denoise


def published_runs(context: CheckContext) -> Iterator[Measurement]:
    """Compare samples of a mixture with the published implementation: 5, 18 and 40 steps, and with churn."""
    stored = published(context, "edm_a")
    denoise, latents, noises = mixture(stored), stored.inputs["latents"], stored.inputs["churn_noises"]
    ours = {
        f"heun/{steps}/final": build_sampler(context, steps=steps)(
            denoise, 80 * latents, edm_sigmas(steps), noise=no_noise
        )
        for steps in (5, 18, 40)
    }
    with_churn = build_sampler(context, steps=18, **CHURN)
    ours["churn/final"] = with_churn(denoise, 80 * latents, edm_sigmas(18), noise=lambda step: noises[step])
    yield from parity("edm_a", ours, stored)


class LabelScaled:
    """A denoiser with two labels and a null label: x times a function of the label."""

    num_classes = 2

    def __call__(self, x: Tensor, sigma: float, labels: Tensor) -> Prediction:
        return Prediction(x * (0.3 + labels.to(x))[:, None, None, None])


def linear(context: CheckContext) -> Iterator[Measurement]:
    """Measure that guidance is linear in the scale: 0 is the unconditional prediction, 1 the conditional one."""
    assert context.component is not None
    component, x, labels = (
        context.component,
        fixtures.numbers(4, 4, 3, 3, dtype=torch.float64),
        torch.tensor([0, 1, 0, 1]),
    )

    def guided(**settings: Any) -> Tensor:
        rule = component.build(component.params(**settings), schedule=fixtures.schedule())
        x0: Tensor = rule(LabelScaled(), labels)(x, 1.0).x0
        return x0

    conditional, unconditional = (LabelScaled()(x, 1.0, of).x0 for of in (labels, torch.full_like(labels, 2)))
    for scale in (0.0, 1.0, 1.5, 4.0):
        line = unconditional + scale * (conditional - unconditional)
        yield Measurement(f"scale {scale:g}, from the line", max_difference(guided(scale=scale), line), 1e-12)
    some = guided(scale=4.0, channels=3)
    yield Measurement("3 of 4 channels: guided channels", max_difference(some[:, :3], guided(scale=4.0)[:, :3]), 0)
    yield Measurement("3 of 4 channels: the other channel", max_difference(some[:, 3:], conditional[:, 3:]), 0)
    outside = guided(scale=4.0, interval=(2.0, 3.0))
    yield Measurement("outside the interval, from the conditional prediction", max_difference(outside, conditional), 0)


class ThousandSteps:
    """A schedule of a thousand steps, whose noise levels are its times."""

    def t_from_sigma(self, sigma: Tensor) -> Tensor:
        return sigma

    def snap(self, sigma: Tensor) -> Tensor:
        return sigma

    def noise_fraction(self, t: Tensor) -> Tensor:
        return t / 1000


def scales(context: CheckContext, times: Sequence[float], **settings: Any) -> Tensor:
    """Return the effective scale of power-cosine guidance at each time of 1000."""
    assert context.component is not None
    params = {"shape": "power_cosine", **settings}
    rule = context.component.build(context.component.params(**params), schedule=ThousandSteps())
    x, label = torch.ones(1, 1, 1, 1, dtype=torch.float64), torch.tensor([0])
    conditional, unconditional = (LabelScaled()(x, 1.0, of).x0 for of in (label, label + 2))
    guided = torch.cat([rule(LabelScaled(), label)(x, t).x0 for t in times])
    return ((guided - unconditional) / (conditional - unconditional)).flatten()


def power_cosine(context: CheckContext) -> Iterator[Measurement]:
    """Compare with 1 + (scale - 1) sin^2(pi (1 - t / T)^power / 2): the full scale at t = 0, 1 at t = T."""
    for power in (4.0, 1.0):
        closed = {0: 4.0, 500: 1 + 3 * math.sin(math.pi / 2 * 0.5**power) ** 2, 1000: 1.0}
        found = scales(context, list(closed), scale=4.0, power=power).tolist()
        for ours, (t, exact) in zip(found, closed.items(), strict=True):
            shown = f"power {power:g}, t / T = {t / 1000:g}: scale, from {exact:.4g}"
            yield Measurement(shown, abs(ours - exact), 1e-12)


def published_scales(context: CheckContext) -> Iterator[Measurement]:
    """Compare the scales with the published MDTv2 and MDT at three timesteps."""
    for name in ("mdtv2_a", "mdtv1_a"):
        stored = published(context, name)
        times = stored.inputs["cfg_t"][:3].tolist()  # of the conditional half
        ours = {
            f"cfg_{scale}_pow_{power}_effective_scale": scales(context, times, scale=scale, power=power)
            for scale, power in ((4.0, 4.0), (3.8, 0.01))
        }
        yield from parity(name, ours, stored)


class WithHead:
    """A denoiser linear in x, with an auxiliary head "inner" of another slope, and a null label."""

    num_classes = 2

    def __init__(self, slope: float = 0.3, inner: float = 0.1) -> None:
        self.slope, self.inner = slope, inner
        self.seen: list[Tensor] = []  # labels of each call

    def __call__(self, x: Tensor, sigma: float, labels: Tensor) -> Prediction:
        self.seen.append(labels)
        offset = labels.to(x)[:, None, None, None]
        return Prediction((self.slope + offset) * x, heads={"inner": (self.inner + 0.5 * offset) * x})


def differing(one: Tensor, two: Tensor) -> float:
    """Count the values that are not bit-identical."""
    return float((one != two).sum()) if one.shape == two.shape else math.inf


def internal(context: CheckContext) -> Iterator[Measurement]:
    """Measure D_i + w (D - D_i) on a linear toy, that w = 1 is the plain sampler, and the order with CFG."""
    assert context.component is not None
    component, x = context.component, fixtures.numbers(4, 2, 3, 3, dtype=torch.float64)
    labels, plain = torch.tensor([0, 1, 0, 1]), WithHead()
    null = torch.full_like(labels, plain.num_classes)

    def guided(given: Tensor, sigma: float = 1.0, **settings: Any) -> Tensor:
        rule = component.build(component.params(**settings), schedule=fixtures.schedule())
        x0: Tensor = rule(WithHead(), labels)(given, sigma).x0
        return x0

    def line(of: Tensor, scale: float) -> Tensor:
        found = plain(x, 1.0, of)
        return found.heads["inner"] + scale * (found.x0 - found.heads["inner"])

    for scale in (0.0, 1.4, 4.0):
        off = max_difference(guided(x, scale=scale), line(labels, scale))
        yield Measurement(f"scale {scale:g}, from the extrapolation", off, 1e-12)
    outside = differing(guided(x, scale=4.0, interval=(2.0, 3.0)), plain(x, 1.0, labels).x0)
    yield Measurement("outside the interval: values that differ from D", outside, 0)
    both = line(null, 1.4) + 1.35 * (line(labels, 1.4) - line(null, 1.4))
    with_cfg = guided(x, scale=1.4, cfg={"scale": 1.35})
    yield Measurement("with cfg, from both predictions guided, then combined", max_difference(with_cfg, both), 1e-12)

    def run(denoise: Denoise) -> Tensor:
        for sigma, sigma_next in pairwise(edm_sigmas(8)):  # Euler's method
            x_at = states[-1]
            states.append(x_at + (sigma_next - sigma) * (x_at - denoise(x_at, sigma).x0) / sigma)
        return states.pop()

    ends = []
    for denoise in (
        lambda x, sigma: plain(x, sigma, labels),
        lambda x, sigma: Prediction(guided(x, sigma, scale=1.0)),
        lambda x, sigma: Prediction(guided(x, sigma, scale=1.4)),
    ):
        states = [80 * x]
        ends.append(run(denoise))
    yield Measurement("scale 1: values of samples that differ from the plain sampler's", differing(ends[0], ends[1]), 0)
    yield Measurement("control, those at scale 1.4", differing(ends[0], ends[2]), 1, ">=")


def autoguided(context: CheckContext) -> Iterator[Measurement]:
    """Measure D_weak + w (D - D_weak), and that the network itself as the weaker one changes nothing."""
    assert context.component is not None
    component, x = context.component, fixtures.numbers(4, 2, 3, 3, dtype=torch.float64)
    labels, main = torch.tensor([0, 1, 0, 1]), WithHead()
    own = main(x, 1.0, labels).x0

    def guided(weak: WithHead, **settings: Any) -> Tensor:
        params = component.params(**{"weak_weights": "other", **settings})
        x0: Tensor = component.build(params, schedule=fixtures.schedule(), second=weak)(WithHead(), labels)(x, 1.0).x0
        return x0

    for scale in (0.0, 1.0, 1.7, 2.5):
        same = guided(WithHead(), scale=scale)
        yield Measurement(f"scale {scale:g}: values that the same network changes", differing(same, own), 0)
        weak = WithHead(slope=0.1)
        low = WithHead(slope=0.1)(x, 1.0, labels).x0
        off = max_difference(guided(weak, scale=scale), low + scale * (own - low))
        yield Measurement(f"scale {scale:g}, from the extrapolation", off, 1e-12)
        wrong = sum(not torch.equal(seen, labels) for seen in weak.seen)
        yield Measurement(f"scale {scale:g}: evaluations of the weaker network for other labels", float(wrong), 0)
    outside = differing(guided(WithHead(slope=0.1), scale=2.5, interval=(2.0, 3.0)), own)
    yield Measurement("outside the interval: values that differ from D", outside, 0)


def max_difference(one: Tensor, two: Tensor) -> float:
    """Return the maximum absolute difference."""
    return float((one - two).abs().max())
