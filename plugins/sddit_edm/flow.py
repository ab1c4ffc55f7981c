"""Define the noise schedule of flow matching on linear paths: SiT (arXiv:2401.08740), REPA (arXiv:2410.06940)."""

from __future__ import annotations

import torch
from torch import Tensor

from sddit.diffusion.sigma_grids import sigma_grid
from sddit.diffusion.time_sampling import levels_from_uniform
from sddit.interfaces import Scalings
from sddit_edm.params import FlowParams


class Flow:
    """x = (1 - t) x0 + t eps, and the network predicts the velocity dx/dt = eps - x0, or x0, or eps.

    So x0 = x - t (eps - x0) = (x - t eps) / (1 - t), the network input is x unscaled, and sigma / alpha is t / (1 - t).
    Tensors keep the dtype of t; 1 - t, which determines the noise level near t = 1, is exact there in every precision.
    """

    outputs = 1

    def __init__(self, params: FlowParams) -> None:
        self.params = params
        self.sigma_range = params.level_range
        self.max_factor = None if params.prediction == "velocity" else 1 / params.t_floor

    def t_from_uniform(self, u: Tensor) -> Tensor:
        """Return training times: [B] in (0, 1) -> [B], in the dtype of u.

        These are u itself, or t with logit t ~ N(logit_mean, logit_std^2), or those of `time_sampling`.
        """
        if self.params.time_sampling is not None:
            level = levels_from_uniform(self.params.time_sampling, u)
            return self.t_from_sigma(level).to(u.dtype)
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
        """Return the scalings of x0 as a function of x and the prediction, at t [B], with the time of `direction`."""
        one, scale = torch.ones_like(t), self.params.time_scale
        to_noise = self.params.direction == "noise"
        c_noise = scale * t if to_noise else scale * (1 - t)
        match self.params.prediction:
            case "velocity":  # x0 = x - t (eps - x0)
                return Scalings(c_skip=one, c_out=-t if to_noise else t, c_in=one, c_noise=c_noise)
            case "x0":
                return Scalings(c_skip=torch.zeros_like(t), c_out=one, c_in=one, c_noise=c_noise)
            case "noise":  # x0 = (x - t eps) / (1 - t)
                return Scalings(c_skip=1 / (1 - t), c_out=-t / (1 - t), c_in=one, c_noise=c_noise)

    def grid(self, steps: int, *, kind: str, sigma_min: float, sigma_max: float, rho: float) -> list[float]:
        """Return `steps` noise levels from sigma_max to sigma_min, both exact, then 0. `native` is even in t."""
        if kind != "native":
            return sigma_grid(steps, kind=kind, sigma_min=sigma_min, sigma_max=sigma_max, rho=rho)
        high, low = (sigma / (1 + sigma) for sigma in (sigma_max, sigma_min))
        between = [high + step / (steps - 1) * (low - high) for step in range(1, steps - 1)]
        return [sigma_max, *(t / (1 - t) for t in between), sigma_min, 0.0]
