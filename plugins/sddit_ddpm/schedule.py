"""Define the noise schedule of DDPM (arXiv:2006.11239)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sddit.diffusion.time_sampling import levels_from_uniform
from sddit.interfaces import Scalings
from sddit_ddpm.grids import boundaries, timesteps_on
from sddit_ddpm.params import DDPMParams


@dataclass(frozen=True, slots=True)
class Reverse:
    """Quantities of the step from t to t - 1 that the variational bound needs; each [B], float64."""

    gain: Tensor  # SNR_{t-1} / SNR_t - 1, 0 at t = 0
    log_low: Tensor  # ln of the posterior's variance: fraction 0
    log_range: Tensor  # ln of beta over it: from fraction 0 to fraction 1


class DDPM:
    """x_t = sqrt(abar_t) x0 + sqrt(1 - abar_t) eps, the network predicts eps, and t is an integer from 0 to T - 1.

    Values per timestep are float64 tables; results have the dtype of t.
    """

    def __init__(self, params: DDPMParams) -> None:
        self.outputs = params.outputs
        self.time_sampling = params.time_sampling
        self.chain = params.chain
        self.timesteps = params.timestep_map  # of the full chain: the network inputs
        self.total = params.timesteps
        self.sigma_range = params.level_range
        self._tables: dict[tuple[str, torch.device], Tensor] = {}

    def t_from_uniform(self, u: Tensor) -> Tensor:
        """Return training timesteps: [B] in (0, 1) -> [B] integers in the dtype of u.

        They are uniformly distributed, or those nearest to the noise levels of `time_sampling`.
        """
        if self.time_sampling is not None:
            return self.t_from_sigma(levels_from_uniform(self.time_sampling, u)).to(u.dtype)
        count = len(self.chain.levels)
        return (u.double() * count).floor().clamp(max=count - 1).to(u.dtype)

    def alpha(self, t: Tensor) -> Tensor:
        """Return sqrt(abar_t) = 1 / sqrt(1 + level^2)."""
        return (1 + self._level(t) ** 2).rsqrt().to(t.dtype)

    def sigma(self, t: Tensor) -> Tensor:
        """Return sqrt(1 - abar_t)."""
        level = self._level(t)
        return (level * (1 + level**2).rsqrt()).to(t.dtype)

    def perturb(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Return x_t, [B, C, H, W] in the dtype of x0; t is [B]."""
        t = t.double()
        alpha, sigma = (scale.to(x0.dtype)[:, None, None, None] for scale in (self.alpha(t), self.sigma(t)))
        return alpha * x0 + sigma * noise

    def t_from_sigma(self, sigma: Tensor) -> Tensor:
        """Return the timestep whose noise level is nearest to `sigma`, in the dtype of sigma."""
        edges = self._table("edges", sigma.device)
        return torch.searchsorted(edges, sigma.double().contiguous()).to(sigma.dtype)

    def snap(self, sigma: Tensor) -> Tensor:
        """Return the nearest trained noise level, in the dtype of sigma."""
        return self._level(self.t_from_sigma(sigma.double())).to(sigma.dtype)

    def noise_fraction(self, t: Tensor) -> Tensor:
        """Return t / T of the full chain."""
        return self.scalings(t).c_noise / self.total

    def scalings(self, t: Tensor) -> Scalings:
        """Return the scalings of x0 = (x_t - sigma_t eps) / alpha_t; the network takes x_t and t unscaled."""
        level = self._level(t)
        return Scalings(
            c_skip=(1 + level**2).sqrt().to(t.dtype),
            c_out=-level.to(t.dtype),
            c_in=torch.ones_like(t),
            c_noise=self._read("timesteps", t).to(t.dtype),
        )

    def reverse(self, t: Tensor) -> Reverse:
        """Return the reverse step of each t [B]."""
        low = self._read("posterior_variances", t).log()
        return Reverse(self._read("gains", t), low, self._read("betas", t).log() - low)

    def grid(self, steps: int, *, kind: str, sigma_min: float, sigma_max: float, rho: float) -> list[float]:
        """Return `steps` different trained noise levels, falling, then 0: see `sddit_ddpm.grids.timesteps_on`."""
        levels = self.chain.levels
        visited = timesteps_on(levels, steps, kind=kind, sigma_min=sigma_min, sigma_max=sigma_max, rho=rho)
        return [*(levels[t] for t in visited), 0.0]

    def _level(self, t: Tensor) -> Tensor:
        """Return sigma_t / alpha_t, float64."""
        return self._read("levels", t)

    def _read(self, name: str, t: Tensor) -> Tensor:
        """Return the entries of a table at t, float64, of the same shape."""
        return self._table(name, t.device)[t.round().long()]

    def _table(self, name: str, device: torch.device) -> Tensor:
        """Return a table of the chain on a device, cached."""
        if (name, device) not in self._tables:
            self._tables[name, device] = torch.tensor(self._values(name), dtype=torch.float64, device=device)
        return self._tables[name, device]

    def _values(self, name: str) -> Sequence[float]:
        match name:
            case "timesteps":
                return self.timesteps
            case "edges":
                return boundaries(self.chain.levels)
        values: Sequence[float] = getattr(self.chain, name)
        return values
