"""Define the noise schedule of EDM (arXiv:2206.00364), table 1, last column."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sddit.diffusion.sigma_grids import sigma_grid
from sddit.diffusion.time_sampling import levels_from_uniform
from sddit.interfaces import Scalings
from sddit_edm.params import EDMParams


class EDM:
    """sigma(t) = t and alpha(t) = 1: the time is the noise level, in the units of the data.

    Tensors keep the dtype of t; formulas avoid differences of nearly equal numbers.
    """

    outputs = 1

    def __init__(self, params: EDMParams) -> None:
        if params.sigma_data == "measured":
            raise ValueError("sigma_data = 'measured' depends on the data set: replace it with a number")
        self.p_mean = params.p_mean
        self.p_std = params.p_std
        self.time_sampling = params.time_sampling
        self.sigma_data = params.sigma_data
        self.sigma_range = (params.sigma_min, params.sigma_max)

    def t_from_uniform(self, u: Tensor) -> Tensor:
        """Return sigma with ln sigma ~ N(p_mean, p_std^2), or as `time_sampling`: [B] in (0, 1) -> [B], dtype of u."""
        if self.time_sampling is not None:
            return levels_from_uniform(self.time_sampling, u).to(u.dtype)
        return torch.exp(self.p_mean + self.p_std * torch.special.ndtri(u.double())).to(u.dtype)

    def alpha(self, t: Tensor) -> Tensor:
        """Return 1."""
        return torch.ones_like(t)

    def sigma(self, t: Tensor) -> Tensor:
        """Return t."""
        return t

    def perturb(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Return x0 + sigma noise, [B, C, H, W] in the dtype of x0; t is [B]."""
        return x0 + t.to(x0.dtype)[:, None, None, None] * noise

    def t_from_sigma(self, sigma: Tensor) -> Tensor:
        """Return sigma."""
        return sigma

    def snap(self, sigma: Tensor) -> Tensor:
        """Return sigma: every noise level is trained."""
        return sigma

    def noise_fraction(self, t: Tensor) -> Tensor:
        """Return a fraction even in ln sigma, as c_noise is, between sigma_min and sigma_max; same shape as t."""
        low, high = self.sigma_range
        return ((t / low).log() / math.log(high / low)).clamp(0, 1)

    def scalings(self, t: Tensor) -> Scalings:
        """Return the scalings of table 1, "network and preconditioning", at t = sigma [B]."""
        variance = t**2 + self.sigma_data**2
        return Scalings(
            c_skip=self.sigma_data**2 / variance,
            c_out=t * self.sigma_data / variance.sqrt(),
            c_in=1 / variance.sqrt(),
            c_noise=t.log() / 4,
        )

    def grid(self, steps: int, *, kind: str, sigma_min: float, sigma_max: float, rho: float) -> list[float]:
        """Return `steps` noise levels from sigma_max to sigma_min, both exact, then 0. `native` is even in sigma."""
        if kind == "native":
            kind, rho = "edm", 1.0
        return sigma_grid(steps, kind=kind, sigma_min=sigma_min, sigma_max=sigma_max, rho=rho)
