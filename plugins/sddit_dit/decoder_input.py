"""Turn the tokens of the sparse span into those of the blocks after it, with a fill at hidden positions.

Letters as in SD-DiT (arXiv:2403.17004): h output of the span at visible positions, e all tokens before the span, u what
comes after it. If the span starts at the first block, e are the embedded noisy tokens. Both modules map (h [B, K, D],
e [B, N, D], visible [B, K] or None, silu(c), dense_path) to u [B, N, width after the span]. Samples of the dense path,
and the entire batch if h is None, get the fill at every position, as if all tokens were hidden.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sddit_dit.blocks import AdaptiveLinear, Positions, scatter_tokens
from sddit_dit.params import DiTParams


def restored(h: Tensor | None, visible: Tensor | None, dense_path: Tensor | None, fill: Tensor) -> Tensor:
    """Return tokens at all positions, [B, N, D]: h at the `visible` ones of samples off the dense path, else `fill`."""
    if h is None:
        return fill
    u = h if visible is None else scatter_tokens(h, visible, into=fill)
    return u if dense_path is None else torch.where(dense_path[:, None, None], fill, u.to(fill.dtype))


class SplitInput(nn.Module):
    """Input of a block of the DiT itself: h is unchanged, or fused with e (SPRINT, arXiv:2510.21986).

    The fused input is a Linear of [e, h], with a learned vector in place of h where it is missing.
    """

    def __init__(self, params: DiTParams, grid: tuple[int, int]) -> None:
        super().__init__()
        width = params.block_sizes[0][0]
        self.fill = params.span_fill
        self.positions = Positions(grid, width)
        self.mask_token = nn.Parameter(torch.empty(width)) if self.fill in ("learned", "fused") else None
        self.fusion = nn.Linear(2 * width, width) if self.fill == "fused" else None

    def forward(
        self,
        h: Tensor | None,
        e: Tensor,
        visible: Tensor | None,
        act: Tensor,
        dense_path: Tensor | None = None,
    ) -> Tensor:
        u = restored(h, visible, dense_path, self._fill(e))
        if self.fusion is None:
            return u
        fused: Tensor = self.fusion(torch.cat([e, u.to(e.dtype)], dim=-1))
        return fused.to(e.dtype)  # autocast lowers the precision of a Linear, not that of the tokens

    def _fill(self, e: Tensor) -> Tensor:
        """Return the fill of every position, [B, N, D]. A fused one has its position from e."""
        if self.fill == "input":
            return e
        if self.mask_token is None:
            return self.positions.table.expand_as(e)
        fill = self.mask_token if self.fill == "fused" else self.mask_token + self.positions.table
        return fill.expand_as(e)


class BridgedInput(nn.Module):
    """Input of a decoder with its own width: a bridge (MaskDiT, arXiv:2306.09305), then positions are added."""

    def __init__(self, params: DiTParams, grid: tuple[int, int]) -> None:
        super().__init__()
        assert params.decoder is not None
        condition, width = params.block_sizes[0][0], params.block_sizes[-1][0]
        self.fill = params.span_fill
        self.positions = Positions(grid, width)
        self.bridge = AdaptiveLinear(condition, width, condition)
        own = params.decoder.bridge == "own"
        self.noisy_bridge = AdaptiveLinear(condition, width, condition) if own else None
        self.mask_token = nn.Parameter(torch.empty(width)) if self.fill == "learned" else None

    def forward(
        self,
        h: Tensor | None,
        e: Tensor,
        visible: Tensor | None,
        act: Tensor,
        dense_path: Tensor | None = None,
    ) -> Tensor:
        return self._project(h, e, visible, act, dense_path) + self.positions.table

    def _project(
        self, h: Tensor | None, e: Tensor, visible: Tensor | None, act: Tensor, dense_path: Tensor | None
    ) -> Tensor:
        """Return all tokens in the decoder's width, [B, N, width], before positions are added."""
        if self.fill == "input" and self.noisy_bridge is None:  # one bridge for both kinds
            one: Tensor = self.bridge(restored(h, visible, dense_path, e), act)
            return one
        u: Tensor | None = None if h is None else self.bridge(h, act)
        if u is not None and visible is None and dense_path is None:
            return u
        return restored(u, visible, dense_path, self._fill(e, act))

    def _fill(self, e: Tensor, act: Tensor) -> Tensor:
        """Return the fill of every position, [B, N, width]."""
        if self.noisy_bridge is not None:
            noisy: Tensor = self.noisy_bridge(e, act)
            return noisy
        fill = self.positions.table.new_zeros(()) if self.mask_token is None else self.mask_token
        return fill.expand(*e.shape[:2], self.positions.table.shape[1])
