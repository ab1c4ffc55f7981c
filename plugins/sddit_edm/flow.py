"""Define the noise schedule of flow matching on linear paths: SiT (arXiv:2401.08740), REPA (arXiv:2410.06940)."""

from __future__ import annotations

import torch
from torch import Tensor

from sddit.diffusion.sigma_grids import sigma_grid
from sddit.interfaces import Scalings
from sddit_edm.params import FlowParams


class Flow:
    """x = (1 - t) x0 + t eps, and the network predicts the velocity dx/dt = eps - x0.

    So x0 = x - t (eps - x0), the network input is x unscaled, and sigma / alpha is t / (1 - t). Tensors keep the dtype
    of t; 1 - t, which determines the noise level near t = 1, is exact there in every precision.
    """

    outputs = 1

    def __init__(self, params: FlowParams) -> None:
        self.params = params
        self.sigma_range = params.level_range

    def t_from_uniform(self, u: Tensor) -> Tensor:
        """Return u, or t with logit t ~ N(logit_mean, logit_std^2): [B] in (0, 1) -> [B], in the dtype of u."""
        if self.params.t_sampling == "uniform":
            return u
        logit = self.params.logit_mean + self.params.logit_std * torch.special.ndtri(u.double())
        return torch.sigmoid(logit).to(u.dtype)

    def alpha(self, t: Tensor) -> Tensor:
        """Return 1 - t."""
        return 1 - t

    def sigma(self, t: Tensor) -> Tensor:
        """Return t."""
        return t

    def perturb(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Return (1 - t) x0 + t noise, [B, C, H, W] in the dtype of x0; t is [B]."""
        t = t[:, None, None, None]
        return (1 - t).to(x0.dtype) * x0 + t.to(x0.dtype) * noise

    def t_from_sigma(self, sigma: Tensor) -> Tensor:
        """Return sigma / (1 + sigma)."""
        return sigma / (1 + sigma)

    def snap(self, sigma: Tensor) -> Tensor:
        """Return sigma: every noise level is trained."""
        return sigma

    def noise_fraction(self, t: Tensor) -> Tensor:
        """Return t."""
        return t

    def scalings(self, t: Tensor) -> Scalings:
        """Return the scalings of x0 = x - t (eps - x0) at t [B], with the time and sign of `direction`."""
        one, scale = torch.ones_like(t), self.params.time_scale
        if self.params.direction == "noise":
            return Scalings(c_skip=one, c_out=-t, c_in=one, c_noise=scale * t)
        return Scalings(c_skip=one, c_out=t, c_in=one, c_noise=scale * (1 - t))

    def grid(self, steps: int, *, kind: str, sigma_min: float, sigma_max: float, rho: float) -> list[float]:
        """Return `steps` noise levels from sigma_max to sigma_min, both exact, then 0. `native` is even in t."""
        if kind != "native":
            return sigma_grid(steps, kind=kind, sigma_min=sigma_min, sigma_max=sigma_max, rho=rho)
        high, low = (sigma / (1 + sigma) for sigma in (sigma_max, sigma_min))
        between = [high + step / (steps - 1) * (low - high) for step in range(1, steps - 1)]
        return [sigma_max, *(t / (1 - t) for t in between), sigma_min, 0.0]
