"""Define the noise schedule of flow matching on cosine paths: SiT's generalized variance-preserving path."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sddit.diffusion.sigma_grids import sigma_grid
from sddit.interfaces import Scalings
from sddit_edm.cosine_params import QUARTER, CosineFlowParams


class CosineFlow:
    """x = cos(pi t / 2) x0 + sin(pi t / 2) eps, and the network predicts the velocity v = dx/dt (arXiv:2401.08740).

    With alpha = cos and sigma = sin of pi t / 2, v = pi / 2 (alpha eps - sigma x0), so x0 = alpha x - 2 / pi sigma v;
    sigma / alpha is tan(pi t / 2). Tensors keep the dtype of t and are computed in float64.
    """

    outputs = 1

    def __init__(self, params: CosineFlowParams) -> None:
        self.params = params
        self.sigma_range = params.level_range

    def t_from_uniform(self, u: Tensor) -> Tensor:
        """Return u, or t with ln(sigma / alpha) ~ N(logit_mean, logit_std^2): [B] in (0, 1) -> [B], in the dtype of u.

        That is the noise level of the flow schedule whose logit t has the same normal distribution.
        """
        if self.params.t_sampling == "uniform":
            return u
        level = (self.params.logit_mean + self.params.logit_std * torch.special.ndtri(u.double())).exp()
        return self.t_from_sigma(level).to(u.dtype)

    def alpha(self, t: Tensor) -> Tensor:
        """Return cos(pi t / 2), as the sine of the angle to t = 1, where the cosine would lose digits."""
        return (QUARTER * (1 - t.double())).sin().to(t.dtype)

    def sigma(self, t: Tensor) -> Tensor:
        """Return sin(pi t / 2)."""
        return (QUARTER * t.double()).sin().to(t.dtype)

    def perturb(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Return alpha x0 + sigma noise, [B, C, H, W] in the dtype of x0; t is [B]."""
        t = t.double()
        alpha, sigma = (scale.to(x0.dtype)[:, None, None, None] for scale in (self.alpha(t), self.sigma(t)))
        return alpha * x0 + sigma * noise

    def t_from_sigma(self, sigma: Tensor) -> Tensor:
        """Return 2 / pi arctan(sigma)."""
        return (sigma.double().atan() / QUARTER).to(sigma.dtype)

    def snap(self, sigma: Tensor) -> Tensor:
        """Return sigma: every noise level is trained."""
        return sigma

    def noise_fraction(self, t: Tensor) -> Tensor:
        """Return t."""
        return t

    def scalings(self, t: Tensor) -> Scalings:
        """Return the scalings of x0 = alpha x - 2 / pi sigma v at t [B], with the time and sign of `direction`."""
        sign, time = (-1, t) if self.params.direction == "noise" else (1, 1 - t)
        c_out = sign * self.sigma(t) / QUARTER
        return Scalings(c_skip=self.alpha(t), c_out=c_out, c_in=torch.ones_like(t), c_noise=time)

    def grid(self, steps: int, *, kind: str, sigma_min: float, sigma_max: float, rho: float) -> list[float]:
        """Return `steps` noise levels from sigma_max to sigma_min, both exact, then 0. `native` is even in t."""
        if kind != "native":
            return sigma_grid(steps, kind=kind, sigma_min=sigma_min, sigma_max=sigma_max, rho=rho)
        high, low = math.atan(sigma_max), math.atan(sigma_min)
        between = [math.tan(high + step / (steps - 1) * (low - high)) for step in range(1, steps - 1)]
        return [sigma_max, *between, sigma_min, 0.0]
