"""Define the DiT backbone: encoder, optional decoder, and the sparse span that hidden tokens skip."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor, nn

from sddit.interfaces import Attention, Tap, Tokens
from sddit_dit.blocks import Block, Positions, gather_tokens, scale_gradient
from sddit_dit.decoder_input import BridgedInput, SplitInput
from sddit_dit.frame import Frame
from sddit_dit.params import DiTParams


class DiT(Frame[DiTParams]):
    """A diffusion transformer (arXiv:2212.09748) whose encoder may see fewer tokens than its decoder.

    Every token is embedded, e_i = patch_i + position_i. The encoder runs on the class token, if there is one, and on
    the visible tokens only: a shorter dense sequence. The decoder runs on all N positions: encoder output where
    visible, the `fill` elsewhere. Without a decoder this is the plain DiT. If nothing is hidden, both spans see all
    tokens, and the result is bit-identical whether `visible` lists them all or is None.

    `blocks` holds encoder and decoder blocks in depth order.
    """

    decoder_entry = "decoder_input"

    def build_blocks(self, attention: Attention) -> None:
        params, sizes = self.params, self.params.block_sizes
        width = sizes[0][0]
        self.positions = Positions(self.grid, width)
        self.cls_token = nn.Parameter(torch.empty(width)) if params.cls_token else None
        self.blocks = nn.ModuleList(Block(own, heads, params.mlp_ratio, width, attention) for own, heads in sizes)
        self.decoder_input: SplitInput | BridgedInput | None = None
        if params.decoder is not None:
            self.decoder_input = (SplitInput if params.decoder.style == "split" else BridgedInput)(params, self.grid)

    def init_parameter(self, name: str, parameter: Tensor, generator: torch.Generator) -> None:
        """Initialize one parameter: zeros for the bridge if its settings say so, otherwise as in `Frame`."""
        in_bridge = {"bridge", "noisy_bridge"} & set(name.split("."))
        if in_bridge and self.params.decoder is not None and self.params.decoder.bridge_init == "zero":
            nn.init.zeros_(parameter)
        else:
            super().init_parameter(name, parameter, generator)

    def forward(
        self,
        x: Tensor,  # [B, C, H, W]
        c_noise: Tensor,  # [B]
        labels: Tensor,  # [B]
        *,
        taps: Sequence[Tap] = (),
        output: bool = True,
        visible: Tensor | None = None,  # [B, K], ascending
        groups: Tensor | None = None,  # [B, N]
    ) -> tuple[Tensor | None, dict[str, Tensor], dict[Tap, Tokens]]:
        """Return (raw [B, outputs * C, H, W] or None, {auxiliary head: [B, C, H, W]}, taps).

        Stop after the deepest block that is needed. Taps in the sparse span return the K visible tokens with their
        index, and the class token; taps in the decoder return all N and no class token, which is dropped before the
        decoder.
        """
        stop = self.params.last_block(taps, output)
        self.check_depth(stop, output)
        self._check_inputs(visible, groups)
        reads = {tap: self.params.block_of(tap) for tap in taps}
        read = {*reads.values(), *(self.params.head_blocks.values() if output else ())}
        act = self.condition(c_noise, labels)  # [B, D]
        e = self.embed(x) + self.positions.table  # [B, N, D]

        h, tapped = self._encode(e, act, visible, groups, stop, read)
        if self.decoder_input is not None and stop > self.params.encoder_depth:
            h, e = (scale_gradient(tokens, self.params.encoder_gradient) for tokens in (h, e))
            u = self.decoder_input(h, e, visible, act)  # [B, N, D of the decoder]
            h, outputs = self._run(u, act, groups, self.params.encoder_depth, stop, read)
            tapped |= {number: Tokens(tokens) for number, tokens in outputs.items()}
        raw = self.finish(h, act) if output else None
        heads = self.finish_heads(tapped, act) if output else {}
        return raw, heads, {tap: tapped[number] for tap, number in reads.items()}

    def _check_inputs(self, visible: Tensor | None, groups: Tensor | None) -> None:
        """Raise ValueError for inputs that this backbone does not support."""
        if visible is not None and not self.params.supports_masking:
            raise ValueError("a DiT without a decoder cannot hide tokens: set [backbone.decoder]")
        if groups is not None and self.cls_token is not None:
            raise ValueError("groups of tokens cannot be combined with a class token, which would see every group")

    def _encode(
        self,
        e: Tensor,  # [B, N, D]
        act: Tensor,
        visible: Tensor | None,
        groups: Tensor | None,
        stop: int,
        wanted: Collection[int],
    ) -> tuple[Tensor, dict[int, Tokens]]:
        """Return the visible tokens [B, K, D] after the sparse span or block `stop`, and the `wanted` outputs."""
        h = e
        if visible is not None:
            h = gather_tokens(e, visible)
            groups = None if groups is None else groups.gather(1, visible)
        if self.cls_token is None:
            h, outputs = self._run(h, act, groups, 0, min(stop, self.params.encoder_depth), wanted)
            return h, {number: Tokens(tokens, visible) for number, tokens in outputs.items()}
        h = torch.cat([self.cls_token.to(h.dtype).expand(h.shape[0], 1, -1), h], dim=1)
        h, outputs = self._run(h, act, None, 0, min(stop, self.params.encoder_depth), wanted)
        return h[:, 1:], {n: Tokens(tokens[:, 1:], visible, tokens[:, 0]) for n, tokens in outputs.items()}

    def _run(
        self, x: Tensor, act: Tensor, groups: Tensor | None, first: int, last: int, wanted: Collection[int]
    ) -> tuple[Tensor, dict[int, Tensor]]:
        """Return x after blocks first + 1 to last, and the outputs of the `wanted` blocks by number."""
        outputs: dict[int, Tensor] = {}
        for number, block in enumerate(self.blocks[first:last], start=first + 1):
            x = self.run(block, x, act, groups)
            if number in wanted:
                outputs[number] = x
        return x, outputs
