"""Algorithm 2 of EDM (arXiv:2206.00364), with and without its second-order correction.

x = x0 + sigma eps throughout: where the network sees x0 in x, it sees the noise eps = (x - x0) / sigma.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from sddit.interfaces import Denoise, NoiseSchedule
from sddit_heun.params import EulerParams, HeunParams

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
        x0, eps = parts(denoise, x, sigma)
        return x0 + following * eps


class Heun(Euler):
    """Second order: the slope is averaged with the one at the end of the Euler step, except in the step to 0.

    Along the flow d(alpha x) = x0 d(alpha) + eps d(alpha sigma), whatever alpha is as a function of the level. An Euler
    step keeps x0 and eps, so that it comes to x0 + sigma' eps for every alpha. Heun's step takes the mean of both over its
    two ends, and there alpha counts: 1 in variance-exploding coordinates, that of the schedule in its native ones. Where
    alpha(t) and sigma(t) are straight, as in flow matching, the latter is Heun's method in t.
    """

    def __init__(self, params: HeunParams, *, schedule: NoiseSchedule) -> None:
        super().__init__(params)
        self.native = params.coordinates == "native"
        self.schedule = schedule

    def _step(self, denoise: Denoise, x: Tensor, sigma: float, following: float) -> Tensor:
        x0, eps = parts(denoise, x, sigma)
        end = x0 + following * eps
        if following == 0:
            return end
        x0_end, eps_end = parts(denoise, end, following)
        alpha, alpha_end = self._alpha(sigma), self._alpha(following)
        of_x0 = (alpha_end - alpha) * (x0 + x0_end) / 2
        of_eps = (alpha_end * following - alpha * sigma) * (eps + eps_end) / 2
        return (alpha * x + of_x0 + of_eps) / alpha_end

    def _alpha(self, sigma: float) -> float:
        """Signal scale at a level, in the coordinates of the steps."""
        if not self.native:
            return 1.0
        t = self.schedule.t_from_sigma(torch.tensor([sigma], dtype=torch.float64))
        return self.schedule.alpha(t).item()


def parts(denoise: Denoise, x: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
    """x0 and eps of x. The latter is dx/dsigma of the probability-flow ODE: eq. 3 with eq. 4."""
    x0 = denoise(x, sigma).x0
    return x0, (x - x0) / sigma
