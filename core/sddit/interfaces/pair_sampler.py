"""Define the contract of a pair sampler."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from sddit.value_schedules import Value, is_zero

if TYPE_CHECKING:
    pass
from sddit.interfaces.batch import Batch, Context, Draws, View
from sddit.interfaces.noise_schedule import NoiseSchedule
from sddit.interfaces.params import Network, Params


@dataclass(frozen=True, slots=True)
class ViewSpec:
    """A view that a pair sampler makes, known before anything is built."""

    name: str
    network: Network = "student"
    mask_ratio: Value = 0.0  # fraction of tokens hidden from the sparse span
    mask_spread: float = 0.0  # maximum further fraction: each step hides a random part of it

    @property
    def is_masked(self) -> bool:
        """Whether any token is hidden at any time."""
        return self.mask_spread > 0 or not is_zero(self.mask_ratio)


class PairSamplerParams(Params):
    """Face of a pair sampler."""

    def views(self) -> tuple[ViewSpec, ...]:
        """The views it makes, students first."""
        raise NotImplementedError


class PairSampler(Protocol):
    """Which views of a batch exist."""

    def __call__(self, batch: Batch, draws: Draws, schedule: NoiseSchedule, ctx: Context) -> dict[str, View]:
        """The views by name, in the order of `PairSamplerParams.views`."""
        ...
