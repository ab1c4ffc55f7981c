"""What stands around the blocks of every transformer of this family: patches in, the condition, the output."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from sddit.interfaces import Shapes
from sddit_dit.blocks import AdaptiveLinear, LabelEmbedding, TimestepEmbedding, patchify, unpatchify
from sddit_dit.params import TransformerParams


class Frame(nn.Module):
    """A transformer without its middle: what a subclass puts there are `blocks`, in depth order, and a `final` layer.

    While `checkpointing` is True what is `run` is computed again in the backward pass instead of keeping its
    activations; `set_checkpointing` turns it on and off.
    """

    blocks: nn.ModuleList
    final: AdaptiveLinear | None

    def __init__(self, params: TransformerParams, shapes: Shapes, *, zero_null: bool = False) -> None:
        super().__init__()
        self.grid = params.grid(shapes)
        self.checkpointing = False
        self._side = params.patch
        width = params.block_sizes[0][0]
        self.patch = nn.Linear(params.patch**2 * shapes.image[0], width)
        self.timestep = TimestepEmbedding(width)
        # an unconditional model with a zero null label has nothing to learn
        labelled = shapes.num_classes > 0 or not zero_null
        self.label = LabelEmbedding(shapes.num_classes, width, zero_null=zero_null) if labelled else None

    def set_checkpointing(self, on: bool) -> None:
        """Whether to recompute each block in the backward pass."""
        self.checkpointing = on

    def embed(self, x: Tensor) -> Tensor:
        """Images [B, C, H, W] as tokens without positions, [B, N, D]."""
        tokens: Tensor = self.patch(patchify(x, self.grid))
        return tokens

    def condition(self, c_noise: Tensor, labels: Tensor) -> Tensor:
        """silu(c), [B, D], never in less than the parameters' own precision: it is small and steers every block."""
        with torch.autocast(c_noise.device.type, enabled=False):
            c = self.timestep(c_noise)
            return F.silu(c if self.label is None else c + self.label(labels))

    def run(self, module: nn.Module, *inputs: Tensor | None) -> Tensor:
        """What a block makes of its inputs."""
        if self.checkpointing and torch.is_grad_enabled():
            return cast(Tensor, checkpoint(module, *inputs, use_reentrant=False, preserve_rng_state=False))
        return cast(Tensor, module(*inputs))

    def finish(self, x: Tensor, act: Tensor) -> Tensor:
        """The output [B, outputs * C, H, W], outside autocast: a cheap layer, and the loss is as exact as it is."""
        assert self.final is not None
        with torch.autocast(x.device.type, enabled=False):
            return unpatchify(self.final(x.to(act.dtype), act), self.grid, self._side)

    def refuse_beyond(self, stop: int, output: bool) -> None:
        """Raise ValueError where a truncated network is asked for more than it has left."""
        if stop > len(self.blocks) or (output and self.final is None):
            raise ValueError(f"this backbone was cut after block {len(self.blocks)} and cannot go further")


def start(name: str, parameter: Tensor, generator: torch.Generator) -> None:
    """Give one parameter its starting values, drawn from `generator`: a function of its name alone.

    The start of DiT (arXiv:2212.09748) and MaskDiT (arXiv:2306.09305): every block the identity, every output zero.
    """
    parts = name.split(".")
    with torch.no_grad():
        if "bias" in parts or "modulation" in parts or "final" in parts:
            parameter.zero_()
        elif parts[0] in ("timestep", "label", "cls_token") or parts[-1] == "mask_token":
            parameter.normal_(std=0.02, generator=generator)
        else:
            nn.init.xavier_uniform_(parameter, generator=generator)
