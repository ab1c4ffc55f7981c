"""Define settings of the built-in optimizer and trackers. Torch-free."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated

from pydantic import Field

from sddit.interfaces import (
    OptimizerParams,
    RecipeView,
    TrackerParams,
)

Beta = Annotated[float, Field(ge=0, lt=1)]


class AdamWParams(OptimizerParams):
    """Settings of `adamw`. The defaults are DiT's (arXiv:2212.09748): no decay."""

    betas: tuple[Beta, Beta] = Field(
        (0.9, 0.999), strict=False, description="Decay of the averages of the gradient and of its square."
    )
    eps: float = Field(1e-8, gt=0, description="Added to the root of the second average.")
    weight_decay: float = Field(0.0, ge=0, description="Fraction of a weight subtracted at each step, times lr.")
    head_weight_decay: float | None = Field(
        None, ge=0, description="Weight decay of the losses' own heads; not set: weight_decay."
    )
    decay_all: bool = Field(False, description="Decay biases, norms and other one-dimensional weights too.")

    @property
    def state_per_parameter(self) -> int:
        return 2

    def decay(self, head: bool) -> float:
        """Return the weight decay of the losses' own heads, or of all else."""
        return self.weight_decay if self.head_weight_decay is None or not head else self.head_weight_decay

    def idle(self, recipe: RecipeView) -> Iterable[str]:
        heads = recipe.has_heads()
        if not heads:
            yield "head_weight_decay"
        if not self.weight_decay and not (heads and self.decay(head=True)):
            yield "decay_all"


class CsvParams(TrackerParams):
    """`csv` has no settings."""


class TensorboardParams(TrackerParams):
    """`tensorboard` has no settings."""
