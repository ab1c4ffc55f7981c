"""Measure DDPM's chain, likelihood, samples of known images and published numbers for `sddit-run verify`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor

from sddit.diffusion.sampling import noise_levels
from sddit.interfaces import CheckContext, Denoise, Measurement, Outputs, Prediction, Sampler, SamplerParams, View
from sddit.testing import fixtures
from sddit.verify.published import difference, parity, published
from sddit_ddpm.chain import Chain
from sddit_ddpm.loss import Hybrid, log_likelihood
from sddit_ddpm.params import DDPMParams, HybridParams
from sddit_ddpm.schedule import DDPM

RESPACINGS = {"full": "", "250": "250", "25": "25", "ddim25": "ddim25", "10,15,20": "10,15,20"}
MEAN, STD = 0.3, 0.5
"""Mean and std of Gaussian images, whose reverse chain is known."""
SAMPLES = 16_384
FIVE_ERRORS = 5.0


def levels(context: CheckContext) -> Iterator[Measurement]:
    """Measure that trained noise levels are recovered and that grids of n steps have n different trained levels."""
    schedule = DDPM(DDPMParams())
    trained = schedule.chain.levels
    t = torch.arange(len(trained), dtype=torch.float64)
    level = torch.tensor(trained, dtype=torch.float64)
    error = float((schedule.t_from_sigma(level) - t).abs().max())
    yield Measurement("t recovered from its noise level, error", error, 0)
    yield Measurement("trained noise levels changed by snapping", float((schedule.snap(level) != level).sum()), 0)
    low, high = schedule.sigma_range
    wrong = 0
    for kind in ("edm", "log", "native", "stride"):
        for steps in (2, 25, 250):
            grid = schedule.grid(steps, kind=kind, sigma_min=low, sigma_max=high, rho=7.0)
            falls = all(above > below for above, below in pairwise(grid)) and grid[-1] == 0
            wrong += not (falls and len(grid) == steps + 1 and set(grid[:-1]) <= set(trained))
    yield Measurement("grids that are not falling trained noise levels", wrong, 0)


def cosine(context: CheckContext) -> Iterator[Measurement]:
    """Compare abar_t with f(t) / f(0), f(t) = cos^2((t / T + s) / (1 + s) pi / 2), s = 0.008; last beta 0.999."""

    def f(u: float) -> float:
        return (1 + math.cos(math.pi * (125 * u + 1) / 126)) / 2  # cos^2 of half the angle, s = 1 / 125

    schedule = DDPM(DDPMParams(betas="cosine"))
    t = torch.arange(999, dtype=torch.float64)
    exact = torch.tensor([f((i + 1) / 1000) / f(0) for i in range(999)], dtype=torch.float64)
    yield Measurement("cosine: abar, from its closed form", float((schedule.alpha(t) ** 2 - exact).abs().max()), 1e-12)
    yield Measurement("cosine: last beta, from 0.999", abs(schedule.chain.betas[-1] - 0.999), 1e-12)


def published_tables(context: CheckContext) -> Iterator[Measurement]:
    """Compare betas, their products and posterior variances of the full chain and of its respacings."""
    stored = published(context, "ddpm_a")
    for name, respacing in RESPACINGS.items():
        schedule = DDPM(DDPMParams(respacing=respacing))
        timesteps = stored.outputs[f"tables/{name}/timestep_map"].tolist()
        yield Measurement(f"ddpm_a: tables/{name}: timesteps that differ", float(schedule.timesteps != timesteps), 0)
        t = torch.arange(len(timesteps), dtype=torch.float64)
        ours = {
            "betas": torch.tensor(schedule.chain.betas, dtype=torch.float64),
            "alphas_cumprod": schedule.alpha(t) ** 2,
            "posterior_log_variance_clipped": schedule.reverse(t).log_low,
        }
        yield from parity("ddpm_a", {f"tables/{name}/{key}": tensor for key, tensor in ours.items()}, stored)
    betas = DDPM(DDPMParams(betas="cosine")).chain.betas
    yield from parity("ddpm_a", {"tables/cosine/betas": torch.tensor(betas, dtype=torch.float64)}, stored)


def likelihood(context: CheckContext) -> Iterator[Measurement]:
    """Measure that the likelihoods of the 256 values of a pixel add up to 1 in the first step, for any mean."""
    values = torch.linspace(-1, 1, 256, dtype=torch.float64)[:, None, None, None].expand(-1, 8, 1, 5)
    mean = torch.linspace(-1.1, 1.1, 8, dtype=torch.float64)[:, None, None]
    fraction = torch.linspace(-3, 3, 5, dtype=torch.float64)
    first = DDPM(DDPMParams()).reverse(torch.zeros(256, dtype=torch.float64))
    total = log_likelihood(values, values - mean, first, fraction).exp().sum(0)
    yield Measurement("sum of the likelihoods of all values, from 1", float((total - 1).abs().max()), 1e-9)


def several_views(context: CheckContext) -> Iterator[Measurement]:
    """Measure that two equal views give twice the loss of one if summed, and the same loss if averaged."""
    schedule, inputs = DDPM(DDPMParams()), outputs_at(torch.arange(0, 1000, 10))
    one = value_of(schedule, *inputs)
    for over_views, times in (("sum", 2), ("mean", 1)):
        both = value_of(schedule, *inputs, views=("student", "other"), over_views=over_views)
        yield Measurement(f"{over_views}: two equal views, from {times} of one", difference(both, times * one), 1e-12)


def min_snr(context: CheckContext) -> Iterator[Measurement]:
    """Measure that the weight of the squared error is min(SNR, gamma) / SNR, above and below gamma."""
    schedule, t = DDPM(DDPMParams()), torch.arange(1000)
    inputs, gamma = outputs_at(t), 5.0
    plain = value_of(schedule, *inputs, vb_weight=0.0)
    weight = value_of(schedule, *inputs, vb_weight=0.0, weighting="min_snr", snr_gamma=gamma) / plain
    snr = (schedule.alpha(t.double()) / schedule.sigma(t.double())) ** 2
    for where, chosen, exact in (("above", snr > gamma, gamma / snr), ("below", snr <= gamma, torch.ones_like(snr))):
        off = float((weight / exact - 1)[chosen].abs().max())
        yield Measurement(f"weight where SNR is {where} gamma, relative", off, 1e-12)


def outputs_at(t: Tensor) -> list[Tensor]:
    """Return x0, noise, t and a network output for each timestep [B], float64, two pixels each for `value_of`."""
    x0, noise = (fixtures.numbers(len(t), 1, 1, 2, key=key, dtype=torch.float64) for key in (1, 2))
    return [x0, noise, t, fixtures.numbers(len(t), 2, 1, 2, key=3, dtype=torch.float64)]


def published_losses(context: CheckContext) -> Iterator[Measurement]:
    """Compare the losses of DiT, of its options and of MDTv2, also in float32."""
    stored, schedule = published(context, "ddpm_a"), DDPM(DDPMParams())
    inputs = [stored.inputs[name] for name in ("x_start", "noise", "t", "model_output")]
    bound: dict[str, Any] = {"mse_weight": 0.0, "vb_weight": 1000.0, "vb_trains": "all"}
    ours = {
        "train/loss": value_of(schedule, *inputs),
        "train/mse": value_of(schedule, *inputs, vb_weight=0.0),
        "train_kl/loss": value_of(schedule, *inputs, **bound),
    }
    yield from parity("ddpm_a", ours, stored)
    single = value_of(schedule, *(tensor.float() if tensor.is_floating_point() else tensor for tensor in inputs))
    off = difference(single.double(), stored.outputs["train/loss"])
    yield Measurement("ddpm_a: train/loss in float32", off, 1e-5)
    stored = published(context, "mdtv2_a")
    inputs = [stored.inputs[f"loss_{name}"] for name in ("x0", "noise", "t", "output")]
    yield from parity("mdtv2_a", {"train/loss": value_of(schedule, *inputs, weighting="min_snr")}, stored)


def value_of(
    schedule: DDPM,
    x0: Tensor,
    noise: Tensor,
    t: Tensor,
    output: Tensor,
    *,
    views: tuple[str, ...] = ("student",),
    **settings: Any,
) -> Tensor:
    """Return the hybrid loss [B] of a network output [B, 2 C, H, W] at timesteps t [B]; all `views` are equal."""
    channels, t = x0.shape[1], t.to(x0.dtype)
    view = View(network="student", x=schedule.perturb(x0, noise, t), t=t, labels=t.long(), x0=x0, noise=noise)
    context = fixtures.context()
    context.schedule = schedule
    outputs = Outputs(raw=output[:, :channels], extra=output[:, channels:])
    value: Tensor = Hybrid(HybridParams(**settings))(context, dict.fromkeys(views, view), dict.fromkeys(views, outputs))
    return value


def build_sampler(context: CheckContext, **settings: Any) -> tuple[Sampler, list[float]]:
    """Build the checked sampler with these settings; return it and its sigmas."""
    assert context.component is not None
    schedule, params = DDPM(DDPMParams()), cast(SamplerParams, context.component.params(**settings))
    sampler: Sampler = context.component.build(params, schedule=schedule)
    return sampler, noise_levels(params, schedule)


def ideal(x: Tensor, sigma: float) -> Tensor:
    """Return E[x0 | x] of images N(MEAN, STD^2)."""
    return MEAN + STD**2 / (STD**2 + sigma**2) * (x - MEAN)


def known_chain(sigmas: list[float]) -> Denoise:
    """Return the ideal denoiser, with the variance fraction that makes each reverse step exact.

    The variance of x_{t-1} given x_t is the posterior's times 1 + gain m, m = STD^2 / (STD^2 + sigma^2).
    """
    chain = Chain(tuple(reversed(sigmas[:-1])))

    def denoise(x: Tensor, sigma: float) -> Prediction:
        t = chain.levels.index(sigma)
        m, span = STD**2 / (STD**2 + sigma**2), math.log(chain.betas[t] / chain.posterior_variances[t])
        return Prediction(ideal(x, sigma), torch.full_like(x, 2 * math.log1p(chain.gains[t] * m) / span - 1))

    return denoise


def spread(context: CheckContext) -> Iterator[Measurement]:
    """Measure that 12 steps with the exact variance sample the mean and variance of the data: each step is exact."""
    sampler, sigmas = build_sampler(context, steps=12)
    drawn = sampler(known_chain(sigmas), sigmas[0] * unit(0), sigmas, noise=lambda step: unit(1 + step))
    mean = abs(float(drawn.mean()) - MEAN) / (STD / math.sqrt(SAMPLES))
    yield Measurement("mean of the samples, from the data's in standard errors", mean, FIVE_ERRORS)
    variance = abs(float(drawn.var()) / STD**2 - 1) * math.sqrt(SAMPLES / 2)
    yield Measurement("variance of the samples, from the data's in standard errors", variance, FIVE_ERRORS)


def unit(key: int) -> Tensor:
    """Return unit noise, [SAMPLES, 1, 1, 1]."""
    return fixtures.numbers(SAMPLES, 1, 1, 1, key=key, dtype=torch.float64)


def convergence(context: CheckContext) -> Iterator[Measurement]:
    """Measure the order of convergence to the exact flow of Gaussian images, without noise."""
    sampler, sigmas = build_sampler(context)
    high, low = sigmas[0], sigmas[-2]
    u = (torch.arange(64, dtype=torch.float64) + 0.5) / 64
    x = (high * torch.special.ndtri(u)).view(-1, 1, 1, 1)
    exact = MEAN + (x - MEAN) * math.sqrt((STD**2 + low**2) / (STD**2 + high**2))
    errors = []
    for steps in (128, 256, 512):
        even = [high * (low / high) ** (i / steps) for i in range(steps + 1)]
        end = sampler(lambda x, sigma: Prediction(ideal(x, sigma)), x, even, noise=lambda step: x)
        errors.append(float((end - exact).square().mean().sqrt()))
    for (coarse, fine), (error, smaller) in zip(pairwise((128, 256, 512)), pairwise(errors), strict=True):
        order = math.log2(error / smaller)
        yield Measurement(f"order of convergence, {coarse} to {fine} steps, from 1", abs(order - 1), 0.05)


def published_ancestral(context: CheckContext) -> Iterator[Measurement]:
    """Compare 25 steps with the published implementation, for a network in closed form, with and without clipped x0."""
    yield from _published(context, {"ddpm25/final": {}, "ddpm25_clip/final": {"clip": 1.0}})


def published_ddim(context: CheckContext) -> Iterator[Measurement]:
    """Compare 25 steps of DDIM with the published implementation, on both respacings and with noise."""
    runs: dict[str, dict[str, Any]] = {
        "ddim_map_25_eta0/final": {},
        "ddim_map_25_eta0.5/final": {"eta": 0.5},
        "ddim_map_ddim25_eta0/final": {"grid": "stride"},
    }
    yield from _published(context, runs)


def _published(context: CheckContext, runs: dict[str, dict[str, Any]]) -> Iterator[Measurement]:
    """Compare 25 steps with each of the settings."""
    stored, schedule = published(context, "ddpm_a"), DDPM(DDPMParams())
    noises: Callable[[int], Tensor] = stored.inputs["loop_noises"].__getitem__
    for name, settings in runs.items():
        sampler, sigmas = build_sampler(context, steps=25, **settings)
        x = math.sqrt(1 + sigmas[0] ** 2) * stored.inputs["loop_xT"]
        final = sampler(lambda x, sigma: closed_form(schedule, x, sigma), x, sigmas, noise=noises)
        yield from parity("ddpm_a", {name: final}, stored)


def closed_form(schedule: DDPM, x: Tensor, sigma: float) -> Prediction:
    """Evaluate the stored network, eps = (0.2 + 0.8 u) x_t + 0.1 sin 3 x_t and v = sin(2 x_t + 5 u), u = t / 1000."""
    u = float(schedule.t_from_sigma(torch.tensor([sigma], dtype=torch.float64))) / 1000
    native = x / math.sqrt(1 + sigma**2)
    eps = native * (0.2 + 0.8 * u) + 0.1 * torch.sin(3 * native)
    return Prediction(x - sigma * eps, torch.sin(2 * native + 5 * u))
