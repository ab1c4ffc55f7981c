"""Define the contract of a loss."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Protocol

from pydantic import Field

from sddit.value_schedules import StepOrFraction, Value, bounded

if TYPE_CHECKING:
    from torch import Tensor

from sddit.interfaces.backbone import BackboneParams
from sddit.interfaces.batch import Context, Outputs, View
from sddit.interfaces.facts import Cost, Needs, Shapes, ViewSpec
from sddit.interfaces.params import Params


@dataclass(frozen=True, slots=True)
class Monitor:
    """Healthy range of one diagnostic of a loss, printed next to its curve in reports."""

    name: str  # as the loss logs it
    title: str
    healthy: str  # what a good run looks like
    low: float | None = None  # an alarm below
    high: float | None = None  # an alarm above
    reference: float | None = None  # a value to draw as a line, such as ln K


class LossParams(Params):
    """Settings of a loss, with the keys that every loss has."""

    weight: Annotated[Value, bounded(0)] = Field(
        1.0,
        description="Weight of this loss: a value schedule. At a constant 0, it and what only it needs are not built.",
    )
    views: tuple[str, ...] = Field((), strict=False, description="Names of the views it reads; none means all of them.")
    window: tuple[float, float] | None = Field(
        None, strict=False, description="Noise interval [low, high] of the student's t outside which a sample counts 0."
    )
    until: StepOrFraction = Field(1.0, description="When the loss ends: steps, or a fraction of the run. 1.0: never.")

    def needs(self) -> Needs:
        """Return what the loss reads."""
        raise NotImplementedError

    def cost(self, backbone: BackboneParams, shapes: Shapes, view: ViewSpec, num_kept: int) -> Cost | None:
        """Training heads and other work on one view of one image; the same head is counted once by the core.

        None is "not stated", and then so are the sums it would be part of: a loss without heads returns `Cost()`.
        """
        return None

    def monitors(self) -> tuple[Monitor, ...]:
        """Return the diagnostics that show whether training is healthy, by name."""
        return ()

    @property
    def couples_samples(self) -> bool:
        """Return whether the loss is one scalar for the entire batch, rather than one value per sample [B]."""
        return False


class Loss(Protocol):
    """One labelled loss: an nn.Module, normally a subclass of `sddit.losses.LossTerm`.

    It may own training heads and buffers. Buffers change only in `after_step`, from statistics staged in forward, so
    that a skipped step changes nothing. `ema_modules` names the submodules that the teacher averages.
    """

    ema_modules: tuple[str, ...]

    def __call__(self, ctx: Context, views: Mapping[str, View], outputs: Mapping[str, Outputs]) -> Tensor:
        """Return one value per sample [B], or a scalar if its params have `couples_samples`."""
        ...

    def after_step(self, ctx: Context) -> None:
        """Update buffers, once after each optimizer step that was taken."""
        ...

    def staged(self) -> Iterable[Tensor]:
        """Return what forward staged for `after_step`, on the device. The step is skipped if it is not finite."""
        ...

    def discard(self) -> None:
        """Discard what forward staged, because the step is skipped."""
        ...

    def diagnostics(self) -> dict[str, Tensor]:
        """Scalars for the log since the last call, on the device."""
        ...
