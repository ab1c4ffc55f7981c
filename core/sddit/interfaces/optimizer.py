"""Define the contract of an optimizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol

from pydantic import Field

from sddit.value_schedules import StepOrFraction, Value, bounded

if TYPE_CHECKING:
    import torch

from sddit.interfaces.facts import Matrix
from sddit.interfaces.params import Params

Role = Literal["matrix", "embedding", "head", "vector"]


@dataclass(frozen=True, slots=True)
class ParameterRole:
    """The role of a parameter in its network, which `Backbone.parameter_role` and `LossTerm.parameter_role` state.

    Roles:
        matrix: the weight [out, in] of a layer within the network, between hidden features.
        embedding: a table, or the weight of a layer that takes inputs: patches, labels, noise levels.
        head: the weight of an output layer, or of a loss's own modules.
        vector: everything that is not two-dimensional, such as biases and gains.
    """

    role: Role
    stacked: int = 1  # matrices that are stacked along the rows of this one: 3 for queries, keys and values


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

    @property
    def takes_roles(self) -> bool:
        """Return whether its groups are split by the role of their parameters."""
        return False

    def state_size(self, parameters: int, matrices: Sequence[Matrix]) -> int:
        """Return the number of values it keeps for `parameters` trained values, those of the `matrices` included."""
        return parameters * self.state_per_parameter

    def flops(self, matrices: Sequence[Matrix]) -> float:
        """Return the FLOPs of one step, without what it computes for each number alone."""
        return 0.0


class Optimizer(Protocol):
    """Build a torch optimizer.

    `groups` are dicts with `params`, `lr_scale` and `head`: whether a loss owns them. If the settings say
    `takes_roles`, they also have `role` and `stacked`, the fields of `ParameterRole`.
    """

    def __call__(self, groups: Sequence[Mapping[str, Any]], device: torch.device) -> torch.optim.Optimizer: ...
