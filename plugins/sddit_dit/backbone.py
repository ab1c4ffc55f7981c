"""Define the DiT backbone: blocks of all tokens, the sparse span that hidden tokens skip, and all tokens again."""

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
    """A diffusion transformer (arXiv:2212.09748) in which hidden tokens skip the blocks of a sparse span.

    Every token is embedded, e_i = patch_i + position_i. The blocks before the span see all N tokens; there are none
    unless a route starts later. The blocks of the span see the visible ones only: a shorter dense sequence. The blocks
    after it, the decoder, see all N: the span's output where visible, the fill elsewhere. Without decoder and route
    this is the plain DiT. If nothing is hidden, every block sees all tokens, and the result is bit-identical whether
    `visible` lists them all or is None. A class token, if there is one, runs up to the end of the span.

    On the dense path the span is skipped, as if all tokens were hidden.

    `blocks` holds all blocks in depth order.
    """

    decoder_entry = "decoder_input"

    def build_blocks(self, attention: Attention) -> None:
        params, sizes = self.params, self.params.block_sizes
        width = sizes[0][0]
        self.positions = Positions(self.grid, width)
        self.cls_token = nn.Parameter(torch.empty(width)) if params.cls_token else None
        self.blocks = nn.ModuleList(Block(own, heads, params.mlp_ratio, width, attention) for own, heads in sizes)
        self.decoder_input: SplitInput | BridgedInput | None = None
        if params.supports_masking:
            bridged = params.decoder is not None and params.decoder.style == "separate"
            self.decoder_input = (BridgedInput if bridged else SplitInput)(params, self.grid)

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
        dense_path: Tensor | bool = False,  # [B], or the entire batch
    ) -> tuple[Tensor | None, dict[str, Tensor], dict[Tap, Tokens]]:
        """Return (raw [B, outputs * C, H, W] or None, {auxiliary head: [B, C, H, W]}, taps).

        Stop after the deepest block that is needed. Taps in the sparse span return the K visible tokens with their
        index, other taps all N. Those up to the end of the span have the class token, which is dropped there.
        The dense path has no auxiliary heads in the span.
        """
        stop = self.params.last_block(taps, output)
        self.check_depth(stop, output)
        reads = {tap: self.params.block_of(tap) for tap in taps}
        read = {*reads.values(), *(self.params.head_blocks.values() if output else ())}
        self._check_inputs(visible, groups, dense_path, reads.values())
        act = self.condition(c_noise, labels)  # [B, D]
        start, end = self.params.span_start, self.params.encoder_depth

        tokens = Tokens(self.embed(x) + self.positions.table)  # [B, N, D]
        if self.cls_token is not None:
            tokens.cls = self.cls_token.to(tokens.patch.dtype).expand(len(x), -1)
        tokens, tapped = self._run(tokens, act, groups, 0, min(stop, start), read)
        before = tokens.patch
        skipped = dense_path is True
        if not skipped:
            if visible is not None:
                tokens = Tokens(gather_tokens(before, visible), visible, tokens.cls)
            in_span = groups if groups is None or visible is None else groups.gather(1, visible)
            tokens, outputs = self._run(tokens, act, in_span, start, min(stop, end), read)
            tapped |= outputs
        if self.decoder_input is not None and stop > end:
            some = dense_path if isinstance(dense_path, Tensor) else None
            h, e = (scale_gradient(one, self.params.encoder_gradient) for one in (tokens.patch, before))
            u = self.decoder_input(None if skipped else h, e, visible, act, some)
            tokens, outputs = self._run(Tokens(u), act, groups, end, stop, read)
            tapped |= outputs
        raw = self.finish(tokens.patch, act) if output else None
        heads = self.finish_heads(tapped, act) if output else {}
        return raw, heads, {tap: tapped[number] for tap, number in reads.items()}

    def _check_inputs(
        self, visible: Tensor | None, groups: Tensor | None, dense_path: Tensor | bool, reads: Collection[int]
    ) -> None:
        """Raise ValueError for inputs that this backbone does not support."""
        if (visible is not None or dense_path is not False) and not self.params.supports_masking:
            raise ValueError("a DiT without a decoder or a route cannot hide tokens: set one of them in [backbone]")
        if groups is not None and self.cls_token is not None:
            raise ValueError("groups of tokens cannot be combined with a class token, which would see every group")
        if dense_path is True and any(self.params.span_start < number <= self.params.encoder_depth for number in reads):
            raise ValueError("the dense path skips the sparse span, so no tokens can be read there")

    def _run(
        self, tokens: Tokens, act: Tensor, groups: Tensor | None, first: int, last: int, wanted: Collection[int]
    ) -> tuple[Tokens, dict[int, Tokens]]:
        """Return the tokens after blocks first + 1 to last, and the outputs of the `wanted` blocks by number."""
        outputs: dict[int, Tokens] = {}
        if first >= last:
            return tokens, outputs
        x, index, has_cls = tokens.patch, tokens.index, tokens.cls is not None
        if tokens.cls is not None:
            x = torch.cat([tokens.cls[:, None], x], dim=1)
        for number, block in enumerate(self.blocks[first:last], start=first + 1):
            x = self.run(block, x, act, groups)
            tokens = Tokens(x[:, 1:], index, x[:, 0]) if has_cls else Tokens(x, index)
            if number in wanted:
                outputs[number] = tokens
        return tokens, outputs
