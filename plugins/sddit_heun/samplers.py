"""Sample with Algorithm 2 of EDM (arXiv:2206.00364), with and without its second-order correction.

x = x0 + sigma eps throughout: where the network estimates x0 in x, it also estimates the noise eps = (x - x0) / sigma.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from sddit.diffusion.sampling import Noise, StepSampler
from sddit.interfaces import Denoise, NoiseSchedule
from sddit_heun.params import EulerParams, HeunParams


class Euler(StepSampler):
    """First-order steps: one network evaluation each."""

    def __init__(self, params: EulerParams, **_: object) -> None:
        self.params = params

    def step(self, denoise: Denoise, x: Tensor, sigmas: Sequence[float], i: int, noise: Noise) -> Tensor:
        x, sigma_hat = self.churn(x, sigmas, i, noise)
        x0, eps = x0_and_eps(denoise, x, sigma_hat)
        return x0 + sigmas[i + 1] * eps

    def churn(self, x: Tensor, sigmas: Sequence[float], i: int, noise: Noise) -> tuple[Tensor, float]:
        """Add noise to raise sigma to sigma_hat = (1 + gamma) sigma: Algorithm 2, lines 4 to 6.

        Return x and sigma_hat.
        """
        params, sigma = self.params, sigmas[i]
        churn_max = math.inf if params.churn_max is None else params.churn_max
        if params.churn == 0 or not params.churn_min <= sigma <= churn_max:
            return x, sigma
        gamma = min(params.churn / (len(sigmas) - 1), math.sqrt(2) - 1)
        sigma_hat = sigma + gamma * sigma
        added_std = params.churn_noise * math.sqrt(sigma_hat**2 - sigma**2)
        return x + added_std * noise(i).to(x), sigma_hat


class Heun(Euler):
    """Second-order steps: average the slope with that at the end of the Euler step, except in the step to 0.

    Along the flow d(alpha x) = x0 d(alpha) + eps d(alpha sigma), for any alpha as a function of sigma. An Euler step
    keeps x0 and eps constant and arrives at x0 + sigma' eps for every alpha. Heun's step takes the mean of both over
    its two ends, and there alpha matters: 1 in variance-exploding coordinates, that of the schedule in its native
    ones. Where alpha(t) and sigma(t) are linear, as in flow matching, the latter is Heun's method in t.
    """

    def __init__(self, params: HeunParams, *, schedule: NoiseSchedule) -> None:
        super().__init__(params)
        self.native = params.coordinates == "native"
        self.schedule = schedule

    def step(self, denoise: Denoise, x: Tensor, sigmas: Sequence[float], i: int, noise: Noise) -> Tensor:
        x, sigma = self.churn(x, sigmas, i, noise)
        sigma_next = sigmas[i + 1]
        x0, eps = x0_and_eps(denoise, x, sigma)
        x_next = x0 + sigma_next * eps
        if sigma_next == 0:
            return x_next
        x0_next, eps_next = x0_and_eps(denoise, x_next, sigma_next)
        alpha, alpha_next = self._alpha(sigma), self._alpha(sigma_next)
        dx0 = (alpha_next - alpha) * (x0 + x0_next) / 2
        deps = (alpha_next * sigma_next - alpha * sigma) * (eps + eps_next) / 2
        return (alpha * x + dx0 + deps) / alpha_next

    def _alpha(self, sigma: float) -> float:
        """Return the signal scale at `sigma` in the coordinates of the steps."""
        if not self.native:
            return 1.0
        t = self.schedule.t_from_sigma(torch.tensor([sigma], dtype=torch.float64))
        return self.schedule.alpha(t).item()


def x0_and_eps(denoise: Denoise, x: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
    """Return x0 and eps of x. The latter is dx/dsigma of the probability-flow ODE: eq. 3 with eq. 4."""
    x0 = denoise(x, sigma).x0
    return x0, (x - x0) / sigma
