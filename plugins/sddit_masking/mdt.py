"""Define the MDT backbone: a DiT with relative positions, whose decoder starts from interpolated tokens."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor, nn

from sddit.interfaces import Attention, Tap, Tokens
from sddit_dit.blocks import Block, gather_tokens, scatter_tokens, sincos_positions
from sddit_dit.frame import Frame
from sddit_masking.params import MDTParams, table_rows


def relative_position_index(grid: tuple[int, int]) -> Tensor:
    """Return the row of a relative position table for each pair of tokens, int64 [N, N].

    Tokens i and j have the offset (y_i - y_j, x_i - x_j); offsets are numbered row by row, the most negative first
    (BEiT, arXiv:2106.08254).
    """
    h, w = grid
    y, x = (axis.flatten() for axis in torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij"))  # [N]
    return (y[:, None] - y + h - 1) * (2 * w - 1) + (x[:, None] - x + w - 1)


class RelativeBlock(nn.Module):
    """DiT block with a learned attention bias per relative position and head.

    With `takes_skip` its input is [x, skip] through a Linear, as in U-ViT (arXiv:2209.12152).
    """

    def __init__(self, params: MDTParams, grid: tuple[int, int], attention: Attention, *, takes_skip: bool) -> None:
        super().__init__()
        _, width, heads = params.named_size
        self.table = nn.Parameter(torch.empty(heads, table_rows(grid)))
        self.skip = nn.Linear(2 * width, width) if takes_skip else None
        self.block = Block(width, heads, params.mlp_ratio, width, attention)

    def forward(
        self,
        x: Tensor,  # [B, n, D]
        act: Tensor,  # [B, D]
        index: Tensor,  # [n, n] or [B, n, n]
        groups: Tensor | None = None,  # [B, n]
        skip: Tensor | None = None,  # [B, n, D]
    ) -> Tensor:
        if self.skip is not None:
            assert skip is not None, "this block takes a skip"
            x = self.skip(torch.cat([x, skip.to(x.dtype)], dim=-1))
        out: Tensor = self.block(x, act, groups, self.bias(index))
        return out

    def bias(self, index: Tensor) -> Tensor:
        """Return the attention bias, [heads, n, n] or [B, heads, n, n]."""
        return self.table.index_select(1, index.flatten()).view(-1, *index.shape).movedim(0, -3)


class Interpolater(nn.Module):
    """Turn the encoder's visible tokens into tokens at all positions (MDT, arXiv:2303.14389, section 3.2).

    Hidden positions start as a mask token; one block attends to all tokens, and only hidden positions take its output.
    All positions get the decoder's position embedding, also if nothing is hidden.
    """

    def __init__(self, params: MDTParams, grid: tuple[int, int], attention: Attention) -> None:
        super().__init__()
        width = params.named_size[1]
        self.positions = nn.Parameter(torch.empty(grid[0] * grid[1], width))
        self.mask_token = nn.Parameter(torch.empty(width))
        self.block = RelativeBlock(params, grid, attention, takes_skip=False)

    def forward(
        self,
        h: Tensor,  # [B, K, D]
        act: Tensor,  # [B, D]
        visible: Tensor | None,  # [B, K]; None: all
        index: Tensor,  # [N, N]
        groups: Tensor | None,  # [B, N]
    ) -> Tensor:
        if visible is None:
            return h + self.positions
        mask_tokens = self.mask_token.expand(h.shape[0], *self.positions.shape)
        u = scatter_tokens(h, visible, into=mask_tokens) + self.positions  # [B, N, D]
        return scatter_tokens(gather_tokens(u, visible), visible, into=self.block(u, act, index, groups))


class MDT(Frame[MDTParams]):
    """A masked diffusion transformer (arXiv:2303.14389).

    Every token is embedded, e_i = patch_i + position_i. The encoder runs on the visible tokens only, the interpolater
    fills in the others, and the decoder runs on all N. If nothing is hidden, whether `visible` lists all tokens or is
    None, the interpolater's block is not run.

    With `long_skips` the second half of the encoder takes the outputs of the first, mirrored; with `input_skips` every
    decoder block takes e, which contains the noisy tokens of hidden positions.
    """

    decoder_entry = "interpolater"
    block_prefixes = ("blocks.", "interpolater.block.")
    position_index: Tensor

    def build_blocks(self, attention: Attention) -> None:
        params = self.params
        depth, width, _ = params.named_size
        rows, columns = self.grid
        self.positions = nn.Parameter(torch.empty(rows * columns, width))
        self.blocks = nn.ModuleList(
            RelativeBlock(params, self.grid, attention, takes_skip=params.takes_skip(number))
            for number in range(1, depth + 1)
        )
        self.interpolater: Interpolater | None = Interpolater(params, self.grid, attention)
        self.register_buffer("position_index", relative_position_index(self.grid), persistent=False)  # [N, N]

    def init_parameter(self, name: str, parameter: Tensor, generator: torch.Generator) -> None:
        """Initialize one parameter: sinusoids for positions, truncated normals for biases, otherwise as in `Frame`."""
        kind = name.rpartition(".")[2]
        if kind == "positions":
            with torch.no_grad():
                parameter.copy_(sincos_positions(self.grid, parameter.shape[1]))
        elif kind == "table":
            nn.init.trunc_normal_(parameter, std=0.02, generator=generator)
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
        """Return (raw [B, outputs * C, H, W] or None, no further heads, taps).

        Stop after the deepest block that is needed. Taps in the encoder return the K visible tokens with their index,
        those in the decoder all N.
        """
        stop = self.params.last_block(taps, output)
        self.check_depth(stop, output)
        reads = {tap: self.params.block_of(tap) for tap in taps}
        if visible is not None and visible.shape[1] == len(self.position_index):
            visible = None  # nothing is hidden
        act = self.condition(c_noise, labels)  # [B, D]
        e = self.embed(x) + self.positions  # [B, N, D]

        h, tapped = self._encode(e, act, visible, groups, stop, reads.values())
        if self.interpolater is not None and stop > self.params.encoder_depth:
            u = self.run(self.interpolater, h, act, visible, self.position_index, groups)  # [B, N, D]
            h, decoder_tapped = self._decode(u, e, act, groups, stop, reads.values())
            tapped |= decoder_tapped
        raw = self.finish(h, act) if output else None
        return raw, {}, {tap: tapped[number] for tap, number in reads.items()}

    def _encode(
        self,
        e: Tensor,  # [B, N, D]
        act: Tensor,
        visible: Tensor | None,
        groups: Tensor | None,
        stop: int,
        wanted: Collection[int],
    ) -> tuple[Tensor, dict[int, Tokens]]:
        """Return the visible tokens [B, K, D] after the encoder or block `stop`, and the `wanted` outputs by block."""
        h, index = e, self.position_index
        if visible is not None:
            h = gather_tokens(e, visible)  # [B, K, D]
            index = index[visible[:, :, None], visible[:, None, :]]  # [B, K, K]
            groups = None if groups is None else groups.gather(1, visible)
        half = self.params.encoder_depth // 2 if self.params.long_skips else 0
        skips: list[Tensor] = []  # outputs of the first half
        tapped = {}
        for number, block in enumerate(self.blocks[: min(stop, self.params.encoder_depth)], start=1):
            skip = skips.pop() if self.params.takes_skip(number) else None
            h = self.run(block, h, act, index, groups, skip)
            if number <= half:
                skips.append(h)
            if number in wanted:
                tapped[number] = Tokens(h, visible)
        return h, tapped

    def _decode(
        self,
        u: Tensor,  # [B, N, D]
        e: Tensor,  # [B, N, D]
        act: Tensor,
        groups: Tensor | None,
        stop: int,
        wanted: Collection[int],
    ) -> tuple[Tensor, dict[int, Tokens]]:
        """Return all tokens [B, N, D] after the decoder or block `stop`, and the `wanted` outputs by block."""
        first = self.params.encoder_depth
        tapped = {}
        for number, block in enumerate(self.blocks[first:stop], start=first + 1):
            u = self.run(block, u, act, self.position_index, groups, e if self.params.input_skips else None)
            if number in wanted:
                tapped[number] = Tokens(u)
        return u, tapped
