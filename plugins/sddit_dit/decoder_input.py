"""Turn the encoder's tokens into the decoder's, with a fill at hidden positions.

Letters as in SD-DiT (arXiv:2403.17004): h encoder output at visible positions, e embedded noisy tokens, u decoder
input. Both modules map (h [B, K, D], e [B, N, D], visible [B, K] or None, silu(c)) to u [B, N, width of the decoder].
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sddit_dit.blocks import AdaptiveLinear, Positions, scatter_tokens
from sddit_dit.params import DiTParams


class SplitInput(nn.Module):
    """Input of a decoder that is the last blocks of the DiT: h is unchanged, and the fill includes its position."""

    def __init__(self, params: DiTParams, grid: tuple[int, int]) -> None:
        super().__init__()
        width = params.block_sizes[0][0]
        self.fill = params.fill
        self.positions = Positions(grid, width)
        self.mask_token = nn.Parameter(torch.empty(width)) if self.fill == "learned" else None

    def forward(self, h: Tensor, e: Tensor, visible: Tensor | None, act: Tensor) -> Tensor:
        if visible is None:
            return h
        if self.fill == "input":
            return scatter_tokens(h, visible, into=e)
        fill = self.positions.table if self.mask_token is None else self.mask_token + self.positions.table
        return scatter_tokens(h, visible, into=fill.expand_as(e))


class BridgedInput(nn.Module):
    """Input of a decoder with its own width: a bridge (MaskDiT, arXiv:2306.09305), then positions are added."""

    def __init__(self, params: DiTParams, grid: tuple[int, int]) -> None:
        super().__init__()
        assert params.decoder is not None
        condition, width = params.block_sizes[0][0], params.block_sizes[-1][0]
        self.fill = params.fill
        self.positions = Positions(grid, width)
        self.bridge = AdaptiveLinear(condition, width, condition)
        own = params.decoder.bridge == "own"
        self.noisy_bridge = AdaptiveLinear(condition, width, condition) if own else None
        self.mask_token = nn.Parameter(torch.empty(width)) if self.fill == "learned" else None

    def forward(self, h: Tensor, e: Tensor, visible: Tensor | None, act: Tensor) -> Tensor:
        return self._project(h, e, visible, act) + self.positions.table

    def _project(self, h: Tensor, e: Tensor, visible: Tensor | None, act: Tensor) -> Tensor:
        """Return all tokens in the decoder's width, [B, N, width], before positions are added."""
        if visible is not None and self.fill == "input" and self.noisy_bridge is None:
            h, visible = scatter_tokens(h, visible, into=e), None  # one bridge for both kinds
        u: Tensor = self.bridge(h, act)
        return u if visible is None else scatter_tokens(u, visible, into=self._fill(u, e, act))

    def _fill(self, u: Tensor, e: Tensor, act: Tensor) -> Tensor:
        """Return the fill of every position, [B, N, width]."""
        if self.noisy_bridge is not None:
            noisy: Tensor = self.noisy_bridge(e, act)
            return noisy
        fill = u.new_zeros(u.shape[-1]) if self.mask_token is None else self.mask_token
        return fill.expand(*e.shape[:2], -1)
