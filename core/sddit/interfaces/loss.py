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
        """Return the cost of heads and other work for one view of one image; the core counts a shared head once.

        None means "not stated", also for every sum that includes it; a loss without heads returns `Cost()`.
        """
        return None

    def pair_cost(self, backbone: BackboneParams, shapes: Shapes, view: ViewSpec, num_kept: int) -> Cost:
        """Return the cost of comparing one image with one image of the batch, for a loss that compares them all."""
        return Cost()

    def monitors(self) -> tuple[Monitor, ...]:
        """Return the diagnostics that show whether training is healthy, by name."""
        return ()

    @property
    def couples_samples(self) -> bool:
        """Return whether the loss is one scalar for the entire batch, rather than one value per sample [B].

        Its forward compares the samples of all processes: `ctx.gather` and `ctx.mean` reach those of the others.
        """
        return False

    @property
    def per_process(self) -> bool:
        """Return whether the loss compares only the samples of its own process.

        It then depends on the number of processes, and so does the run id.
        """
        return False

    @property
    def trains_network(self) -> bool:
        """Return whether the loss has a gradient to the network. A probe that trains only its own head has none."""
        return True


class Loss(Protocol):
    """One labelled loss: an nn.Module, normally a subclass of `sddit.LossTerm`, which documents the methods.

    It may own training heads and buffers. Buffers change only in `after_step`, from statistics staged in forward, so
    that a skipped step changes nothing. The teacher keeps an EMA of the submodules named in `ema_modules`.
    """

    ema_modules: tuple[str, ...]

    def __call__(self, ctx: Context, views: Mapping[str, View], outputs: Mapping[str, Outputs]) -> Tensor: ...
    def after_step(self, ctx: Context) -> None: ...
    def staged(self) -> Iterable[Tensor]: ...
    def discard(self) -> None: ...
    def diagnostics(self) -> dict[str, Tensor]: ...
