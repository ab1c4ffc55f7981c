"""Embed patches and conditions, and compute the output, for every transformer of this family."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar, Generic, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from sddit import Backbone
from sddit.interfaces import Attention, Shapes, Tap, Tokens
from sddit_dit.blocks import AdaptiveLinear, LabelEmbedding, TimestepEmbedding, patchify, scatter_tokens, unpatchify
from sddit_dit.params import TransformerParams

P = TypeVar("P", bound=TransformerParams)


class Frame(Backbone, Generic[P]):
    """A transformer without its middle: a subclass makes `blocks`, in depth order, in `build_blocks` and runs them.

    While `checkpointing` is True, `run` recomputes activations in the backward pass instead of keeping them;
    `set_checkpointing` turns it on and off.
    """

    final: AdaptiveLinear | None
    decoder_entry: ClassVar[str]  # name of the module between encoder and decoder; it may be None

    def __init__(
        self, params: P, *, image: tuple[int, int, int], num_classes: int, outputs: int, attention: Attention
    ) -> None:
        super().__init__()
        self.params = params
        self.grid = params.grid(Shapes(image, num_classes, outputs))
        self.checkpointing = False
        width = params.block_sizes[0][0]
        self.patch = nn.Linear(params.patch**2 * image[0], width)
        self.timestep = TimestepEmbedding(width)
        # an unconditional model with a zero null label has nothing to learn
        has_labels = num_classes > 0 or not params.zero_null
        self.label = LabelEmbedding(num_classes, width, zero_null=params.zero_null) if has_labels else None
        self.build_blocks(attention)
        values = params.patch**2 * image[0]
        self.final = AdaptiveLinear(params.block_sizes[-1][0], values * outputs, width)
        self.aux_heads = nn.ModuleDict()  # like `final`, without a learned variance
        for name, number in params.head_blocks.items():
            self.aux_heads[f"{name}_head"] = AdaptiveLinear(params.block_sizes[number - 1][0], values, width)
        for name, parameter in self.named_parameters():
            self.init_parameter(name, parameter, torch.default_generator)

    def build_blocks(self, attention: Attention) -> None:
        """Make positions, `blocks` and the module named by `decoder_entry`."""
        raise NotImplementedError

    def init_parameter(self, name: str, parameter: Tensor, generator: torch.Generator) -> None:
        """Initialize one parameter from `generator`, as a function of its name alone.

        As DiT (arXiv:2212.09748) and MaskDiT (arXiv:2306.09305): every block is the identity, every output zero.
        """
        parts = name.split(".")
        with torch.no_grad():
            if "bias" in parts or "modulation" in parts or "final" in parts or parts[0] == "aux_heads":
                parameter.zero_()
            elif parts[0] in ("timestep", "label", "cls_token") or parts[-1] == "mask_token":
                parameter.normal_(std=0.02, generator=generator)
            else:
                nn.init.xavier_uniform_(parameter, generator=generator)

    def truncate(self, taps: Sequence[Tap]) -> None:
        """Drop the output and every block after the deepest tap, and the decoder entry if no tap needs it."""
        last = self.params.last_block(taps, output=False)
        del self.blocks[last:]
        self.final = None
        self.aux_heads = nn.ModuleDict()
        if last <= self.params.encoder_depth:
            setattr(self, self.decoder_entry, None)

    def set_checkpointing(self, on: bool) -> None:
        """Set whether each block is recomputed in the backward pass."""
        self.checkpointing = on

    def embed(self, x: Tensor) -> Tensor:
        """Return images [B, C, H, W] as tokens without positions, [B, N, D]."""
        tokens: Tensor = self.patch(patchify(x, self.grid))
        return tokens

    def condition(self, c_noise: Tensor, labels: Tensor) -> Tensor:
        """Return silu(c), [B, D], never in a lower precision than the parameters: it steers every block."""
        with torch.autocast(c_noise.device.type, enabled=False):
            c = self.timestep(c_noise)
            return F.silu(c if self.label is None else c + self.label(labels))

    def run(self, module: nn.Module, *inputs: Tensor | None) -> Tensor:
        """Return the output of a block."""
        if self.checkpointing and torch.is_grad_enabled():
            return cast(Tensor, checkpoint(module, *inputs, use_reentrant=False, preserve_rng_state=False))
        return cast(Tensor, module(*inputs))

    def finish(self, x: Tensor, act: Tensor) -> Tensor:
        """Return the output [B, outputs * C, H, W], outside autocast: a cheap layer whose precision the loss needs."""
        assert self.final is not None
        with torch.autocast(x.device.type, enabled=False):
            return unpatchify(self.final(x.to(act.dtype), act), self.grid, self.params.patch)

    def finish_heads(self, read: Mapping[int, Tokens], act: Tensor) -> dict[str, Tensor]:
        """Return the output of each auxiliary head, [B, C, H, W], from the tokens read after its block.

        It is 0 at the tokens that the block did not see.
        """
        found = {}
        for name, number in self.params.head_blocks.items():
            tokens = read[number]
            with torch.autocast(act.device.type, enabled=False):
                values: Tensor = self.aux_heads[f"{name}_head"](tokens.patch.to(act.dtype), act)  # [B, n, C p p]
            if tokens.index is not None:
                into = values.new_zeros(len(values), math.prod(self.grid), values.shape[-1])
                values = scatter_tokens(values, tokens.index, into)
            found[name] = unpatchify(values, self.grid, self.params.patch)
        return found

    def check_depth(self, stop: int, output: bool) -> None:
        """Raise ValueError if a truncated network lacks block `stop` or the output."""
        if stop > len(self.blocks) or (output and self.final is None):
            raise ValueError(f"this backbone was cut after block {len(self.blocks)} and cannot go further")
