"""Sampling along a chain: with its learned variance, or as DDIM.

Samplers work on z = x_t / sqrt(abar_t) = x0 + sigma eps. There the levels alone are the chain: abar = 1 / (1 + sigma^2),
and the posterior is q(z' | z, x0) = N((s'/s)^2 z + (1 - (s'/s)^2) x0, s'^2 (s^2 - s'^2) / s^2) for levels s > s'.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

from torch import Tensor

from sddit.interfaces import Denoise, Prediction
from sddit_ddpm.chain import Chain
from sddit_ddpm.params import AncestralParams, DDIMParams

Noise = Callable[[int], Tensor]
"""Step -> unit noise [B, C, H, W]."""


class Ancestral:
    """The reverse chain: the posterior's mean at the estimated x0, and the variance that the model has learned.

    Its logarithm lies between the posterior's and beta of the chain that is walked (arXiv:2102.09672, eq. 15). The last
    step adds no noise.
    """

    def __init__(self, params: AncestralParams, **_: object) -> None:
        self.params = params

    def __call__(
        self,
        denoise: Denoise,
        x: Tensor,
        sigmas: Sequence[float],
        *,
        noise: Noise,
        callback: Callable[[int, Tensor], None] | None = None,
    ) -> Tensor:
        """From x [B, C, H, W] at sigmas[0] to the last level, which is 0. The state keeps the dtype of x, float64."""
        chain = Chain(tuple(reversed(sigmas[:-1])))
        for step, (sigma, following) in enumerate(pairwise(sigmas)):
            prediction = denoise(x, sigma)
            keep = (following / sigma) ** 2
            x = keep * x + (1 - keep) * bounded(prediction.x0, self.params.clip)
            if following > 0:
                std = math.sqrt(1 + following**2) * _deviation(prediction, chain, len(sigmas) - 2 - step).to(x)
                x = x + std * noise(step).to(x)
            if callback is not None:
                callback(step, x)
        return x


class DDIM:
    """x0 + sqrt(s'^2 - v) (z - x0) / s + sqrt(v) eps with v = eta^2 times the posterior's variance: arXiv:2010.02502, eq. 12.

    Without noise, eta = 0, this is Euler's method for the probability-flow ODE, so it suits a model of any schedule.
    """

    def __init__(self, params: DDIMParams, **_: object) -> None:
        self.params = params

    def __call__(
        self,
        denoise: Denoise,
        x: Tensor,
        sigmas: Sequence[float],
        *,
        noise: Noise,
        callback: Callable[[int, Tensor], None] | None = None,
    ) -> Tensor:
        """From x [B, C, H, W] at sigmas[0] to the last level, which is 0. The state keeps the dtype of x, float64."""
        for step, (sigma, following) in enumerate(pairwise(sigmas)):
            x0 = bounded(denoise(x, sigma).x0, self.params.clip)
            fresh = self.params.eta**2 * (1 - (following / sigma) ** 2)  # share of s'^2 that is drawn anew
            x = x0 + following * math.sqrt(1 - fresh) * (x - x0) / sigma
            if fresh > 0 and following > 0:
                x = x + following * math.sqrt(fresh) * noise(step).to(x)
            if callback is not None:
                callback(step, x)
        return x


def bounded(x0: Tensor, clip: float | None) -> Tensor:
    """x0 within [-clip, clip]."""
    return x0 if clip is None else x0.clamp(-clip, clip)


def _deviation(prediction: Prediction, chain: Chain, t: int) -> Tensor:
    """Standard deviation of x_{t-1} given x_t, [B, C, H, W], from the model's variance output."""
    if prediction.extra is None:
        raise ValueError("ancestral sampling needs a learned variance, and this model has none")
    fraction = (prediction.extra + 1) / 2
    low, high = math.log(chain.posterior_variances[t]), math.log(chain.betas[t])
    return (((1 - fraction) * low + fraction * high) / 2).exp()
