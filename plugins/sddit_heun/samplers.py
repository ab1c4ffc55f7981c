"""Algorithm 2 of EDM (arXiv:2206.00364), with and without its second-order correction."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

from torch import Tensor

from sddit.interfaces import Denoise
from sddit_heun import EulerParams, HeunParams

Noise = Callable[[int], Tensor]
"""Step -> unit noise [B, C, H, W]."""


class Euler:
    """First order: one evaluation per step."""

    def __init__(self, params: EulerParams, **_: object) -> None:
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
        steps = len(sigmas) - 1
        for step, (sigma, following) in enumerate(pairwise(sigmas)):
            x, sigma_hat = self._churn(x, sigma, step, steps, noise)
            x = self._step(denoise, x, sigma_hat, following)
            if callback is not None:
                callback(step, x)
        return x

    def _churn(self, x: Tensor, sigma: float, step: int, steps: int, noise: Noise) -> tuple[Tensor, float]:
        """Add noise to move up from sigma to sigma_hat = (1 + gamma) sigma: Algorithm 2, lines 4 to 6."""
        settings = self.params
        high = math.inf if settings.churn_max is None else settings.churn_max
        if settings.churn == 0 or not settings.churn_min <= sigma <= high:
            return x, sigma
        gamma = min(settings.churn / steps, math.sqrt(2) - 1)
        sigma_hat = sigma + gamma * sigma
        added = settings.churn_noise * math.sqrt(sigma_hat**2 - sigma**2)
        return x + added * noise(step).to(x), sigma_hat

    def _step(self, denoise: Denoise, x: Tensor, sigma: float, following: float) -> Tensor:
        return x + (following - sigma) * slope(denoise, x, sigma)


class Heun(Euler):
    """Second order: the slope is averaged with the one at the end of the Euler step, except in the step to 0."""

    def __init__(self, params: HeunParams, **_: object) -> None:
        super().__init__(params)

    def _step(self, denoise: Denoise, x: Tensor, sigma: float, following: float) -> Tensor:
        d = slope(denoise, x, sigma)
        end = x + (following - sigma) * d
        if following == 0:
            return end
        return x + (following - sigma) * (d + slope(denoise, end, following)) / 2


def slope(denoise: Denoise, x: Tensor, sigma: float) -> Tensor:
    """dx/dsigma = (x - D(x; sigma)) / sigma of the probability-flow ODE: eq. 3 with eq. 4."""
    return (x - denoise(x, sigma).x0) / sigma
