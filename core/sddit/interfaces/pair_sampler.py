"""Define the contract of a pair sampler."""

from __future__ import annotations

from typing import Protocol

from sddit.interfaces.batch import Batch, Context, Draws, View
from sddit.interfaces.facts import ViewSpec
from sddit.interfaces.noise_schedule import NoiseSchedule
from sddit.interfaces.params import Params


class PairSamplerParams(Params):
    """Settings of a pair sampler."""

    def views(self) -> tuple[ViewSpec, ...]:
        """Return the views it makes, students first."""
        raise NotImplementedError


class PairSampler(Protocol):
    """Make the noisy views of a batch."""

    def __call__(self, batch: Batch, draws: Draws, schedule: NoiseSchedule, ctx: Context) -> dict[str, View]:
        """Return the views by name, in the order of `PairSamplerParams.views`."""
