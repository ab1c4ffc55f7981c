"""Provide the base class of backbones."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from sddit.interfaces import ParameterRole, Tap, Tokens


class Backbone(nn.Module, ABC):
    """The network F. Subclass it, and register the subclass with its `BackboneParams`.

    It is built with its params and the keywords `image` (C, H, W), `num_classes`, `outputs` and `attention`. Its output
    heads are exported with it. `blocks` holds the blocks in depth order. If its params support the dense path, forward
    also takes `dense_path`: True, or [B] bool, for samples that skip the sparse span.
    """

    blocks: nn.ModuleList
    block_prefixes: ClassVar[tuple[str, ...]] = ("blocks.",)  # of the names of parameters that are within a block

    @abstractmethod
    def forward(
        self,
        x: Tensor,  # [B, C, H, W], already scaled by c_in
        c_noise: Tensor,  # [B]
        labels: Tensor,  # [B] int64
        *,
        taps: Sequence[Tap] = (),  # where tokens are read
        output: bool = True,  # if not, stop after the deepest tap
        visible: Tensor | None = None,  # [B, K] tokens that are not hidden; None: all
        groups: Tensor | None = None,  # [B, N] tokens of different groups do not attend to each other
    ) -> tuple[Tensor | None, dict[str, Tensor], dict[Tap, Tokens]]:
        """Return (raw [B, outputs * C, H, W] or None, further heads by name, tokens by tap)."""

    @abstractmethod
    def truncate(self, taps: Sequence[Tap]) -> None:
        """Drop everything that is not needed to reach `taps`: a teacher has no decoder."""

    @abstractmethod
    def set_checkpointing(self, on: bool) -> None:
        """Set whether each block is recomputed in the backward pass instead of keeping its activations."""

    @abstractmethod
    def init_parameter(self, name: str, parameter: Tensor, generator: torch.Generator) -> None:
        """Initialize one parameter from a generator that is keyed by the seed and `name`. A loss may have this too."""

    def parameter_role(self, name: str, parameter: Tensor) -> ParameterRole:
        """State the role of the parameter `name`, for optimizers that treat roles differently.

        By default, the weight of a Linear within a block is a matrix, and every other table is an embedding.
        """
        if parameter.ndim != 2:
            return ParameterRole("vector")
        owner, _, kind = name.rpartition(".")
        in_block = name.startswith(self.block_prefixes)
        is_weight = kind == "weight" and isinstance(self.get_submodule(owner), nn.Linear)
        return ParameterRole("matrix" if in_block and is_weight else "embedding")
