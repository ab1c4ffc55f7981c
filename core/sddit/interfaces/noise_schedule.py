"""Define the contract of a noise schedule."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor

from sddit.interfaces.params import Params


class NoiseScheduleParams(Params):
    """Settings of a noise schedule. `sigma_data` may be the word `measured`; the recipe then holds the number."""

    @property
    def outputs(self) -> int:
        """Multiples of C that the network must give: 1, or 2 with a learned variance."""
        return 1

    @property
    def t_range(self) -> tuple[float, float]:
        """The lowest and highest t at which the network may be evaluated."""
        raise NotImplementedError

    @property
    def level_range(self) -> tuple[float, float]:
        """The same two as variance-exploding noise levels. By default t itself, for schedules whose t is sigma."""
        return self.t_range

    @property
    def grids(self) -> tuple[str, ...]:
        """Values of `sampler.grid`: `edm` and `log` are the same for every schedule, others are its own."""
        return ("edm", "log", "native")


@dataclass(frozen=True, slots=True)
class Scalings:
    """D(x) = c_skip x + c_out F(c_in x, c_noise): EDM (arXiv:2206.00364), eq. 7. Each is [B]."""

    c_skip: Tensor
    c_out: Tensor
    c_in: Tensor
    c_noise: Tensor


class NoiseSchedule(Protocol):
    """x_t = alpha(t) x0 + sigma(t) eps, and the preconditioning, which defines the meaning of the network's output."""

    outputs: int  # multiples of C in the network's output
    sigma_range: tuple[float, float]  # lowest and highest level for sampling, variance-exploding

    def t_from_uniform(self, u: Tensor) -> Tensor:
        """Return training noise levels [B] from uniform numbers [B] in (0, 1)."""

    def alpha(self, t: Tensor) -> Tensor:
        """Return the signal scale, same shape as t."""

    def sigma(self, t: Tensor) -> Tensor:
        """Return the noise scale, same shape as t."""

    def perturb(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Return alpha(t) x0 + sigma(t) noise, [B, C, H, W]."""

    def t_from_sigma(self, sigma: Tensor) -> Tensor:
        """Return the t at which sigma(t) / alpha(t) equals `sigma`."""

    def snap(self, sigma: Tensor) -> Tensor:
        """Return the nearest level that was trained; the identity for a continuous schedule."""

    def noise_fraction(self, t: Tensor) -> Tensor:
        """Return t as a fraction from 0, no noise, to 1, maximum noise: t / T of guidance rules. Same shape as t."""

    def scalings(self, t: Tensor) -> Scalings:
        """Return the preconditioning at t [B]."""

    def grid(self, steps: int, *, kind: str, sigma_min: float, sigma_max: float, rho: float) -> list[float]:
        """Return `steps` decreasing variance-exploding levels and a final 0, computed in float64."""
