"""Sample along a chain: with its learned variance, or as DDIM.

Samplers work on z = x_t / sqrt(abar_t) = x0 + sigma eps. There the sigmas alone define the chain: abar = 1 / (1 +
sigma^2), and the posterior is q(z' | z, x0) = N((s'/s)^2 z + (1 - (s'/s)^2) x0, s'^2 (s^2 - s'^2) / s^2) for sigmas s
> s'.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from sddit.diffusion.sampling import Noise, StepSampler
from sddit.interfaces import Denoise, Prediction
from sddit_ddpm.chain import Chain, sampled_chain
from sddit_ddpm.params import AncestralParams, DDIMParams


class Ancestral(StepSampler):
    """Walk the reverse chain: the posterior's mean at the estimated x0, with the variance that the model has learned.

    Its logarithm is interpolated between that of the posterior's variance and that of beta, of the chain of the sigmas
    (arXiv:2102.09672, eq. 15). The last step adds no noise.
    """

    def __init__(self, params: AncestralParams, **_: object) -> None:
        self.params = params

    def step(self, denoise: Denoise, x: Tensor, sigmas: Sequence[float], i: int, noise: Noise) -> Tensor:
        sigma, sigma_next = sigmas[i], sigmas[i + 1]
        prediction = denoise(x, sigma)
        keep = (sigma_next / sigma) ** 2
        x_next = keep * x + (1 - keep) * clipped(prediction.x0, self.params.clip)
        if sigma_next > 0:
            chain = sampled_chain(tuple(sigmas))
            std = math.sqrt(1 + sigma_next**2) * learned_std(prediction, chain, len(sigmas) - 2 - i).to(x)
            x_next = x_next + std * noise(i).to(x)
        return x_next


class DDIM(StepSampler):
    """Step to x0 + sqrt(s'^2 - v) (z - x0) / s + sqrt(v) eps, v = eta^2 times the posterior's variance.

    This is arXiv:2010.02502, eq. 12.

    Without noise, eta = 0, this is Euler's method for the probability-flow ODE, so it works with a model of any
    schedule.
    """

    def __init__(self, params: DDIMParams, **_: object) -> None:
        self.params = params

    def step(self, denoise: Denoise, x: Tensor, sigmas: Sequence[float], i: int, noise: Noise) -> Tensor:
        sigma, sigma_next = sigmas[i], sigmas[i + 1]
        denoised = clipped(denoise(x, sigma).x0, self.params.clip)
        fresh = self.params.eta**2 * (1 - (sigma_next / sigma) ** 2)  # fraction of s'^2 that is new noise
        x_next = denoised + sigma_next * math.sqrt(1 - fresh) * (x - denoised) / sigma
        if fresh > 0 and sigma_next > 0:
            x_next = x_next + sigma_next * math.sqrt(fresh) * noise(i).to(x)
        return x_next


def clipped(x0: Tensor, clip: float | None) -> Tensor:
    """Clamp x0 to [-clip, clip]."""
    return x0 if clip is None else x0.clamp(-clip, clip)


def learned_std(prediction: Prediction, chain: Chain, t: int) -> Tensor:
    """Return the standard deviation of x_{t-1} given x_t, [B, C, H, W], from the model's variance output."""
    if prediction.extra is None:
        raise ValueError("ancestral sampling needs a learned variance, and this model has none")
    fraction = (prediction.extra + 1) / 2
    low, high = math.log(chain.posterior_variances[t]), math.log(chain.betas[t])
    return (((1 - fraction) * low + fraction * high) / 2).exp()
