"""Define the contract of an optimizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol

from pydantic import Field

from sddit.value_schedules import StepOrFraction, Value, bounded

if TYPE_CHECKING:
    import torch

from sddit.interfaces.params import Params


class OptimizerParams(Params):
    """Settings of an optimizer, with the keys that every optimizer has."""

    lr: Annotated[Value, bounded(0)] = Field(1e-4, description="Learning rate: a value schedule.")
    warmup: StepOrFraction = Field(
        0, description="The learning rate grows linearly from 0 until here: steps, or a fraction of the run."
    )
    warmup_shape: Literal["linear", "linspace"] = Field(
        "linear",
        description="Step i of the W steps of the warm-up, from 0, has this fraction of the rate. linear: (i + 1) / W; "
        "linspace: i / (W - 1), as in DINO (arXiv:2104.14294), so that the first step changes no weight.",
        json_schema_extra={"omit_default": True},
    )
    clip: float | None = Field(None, gt=0, description="Maximum norm of the gradient. Default: no clipping.")
    clip_scope: Literal["group", "all", "each"] = Field(
        "group",
        description="Scope of the norm: the network and the heads of each loss separately, all gradients together, or "
        "each parameter separately (DINO). With `all`, the heads of a loss change the clipping of the network.",
    )
    head_lr: float = Field(1.0, ge=0, description="Factor on the learning rate of the losses' own heads.")

    @property
    def state_per_parameter(self) -> int:
        """Numbers kept per trained number."""
        return 0


class Optimizer(Protocol):
    """Build a torch optimizer. `groups` are dicts with `params`, `lr_scale` and `head`: whether a loss owns them."""

    def __call__(self, groups: Sequence[Mapping[str, Any]], device: torch.device) -> torch.optim.Optimizer: ...
