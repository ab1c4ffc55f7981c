"""Define the head of the align loss, from tokens of the student to the width of the targets."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn

from sddit_alignment.params import AlignParams
from sddit_dit.blocks import gather_tokens, scatter_tokens


class Head(nn.Module):
    """Map tokens [B, n, width] to the width of the targets: not at all, by an MLP with SiLU, or by a convolution.

    The 3x3 convolution runs over the grid of tokens (iREPA, arXiv:2512.10794), with zeros around it and, our choice,
    in place of hidden tokens.
    """

    def __init__(self, params: AlignParams, width: int, target: int, grid: tuple[int, int]) -> None:
        super().__init__()
        self.grid = grid
        self.mlp = build_mlp(params, width, target) if params.head == "mlp" else None
        self.conv = nn.Conv2d(width, target, kernel_size=3, padding=1) if params.head == "conv" else None

    def forward(self, tokens: Tensor, visible: Tensor | None) -> Tensor:
        """Map the tokens at the places `visible` [B, n] (None: all) to [B, n, target]."""
        if self.mlp is not None:
            mapped: Tensor = self.mlp(tokens)
            return mapped
        if self.conv is None:
            return tokens
        if visible is not None:
            empty = tokens.new_zeros(len(tokens), math.prod(self.grid), tokens.shape[-1])
            tokens = scatter_tokens(tokens, visible, empty)
        convolved = self.conv(tokens.transpose(1, 2).reshape(len(tokens), -1, *self.grid))  # [B, target, h, w]
        everywhere: Tensor = convolved.flatten(2).transpose(1, 2)
        return everywhere if visible is None else gather_tokens(everywhere, visible)


def build_mlp(params: AlignParams, width: int, target: int) -> nn.Sequential:
    """Return Linear layers with SiLU between them."""
    hidden = width + target if params.head_width is None else params.head_width
    widths = [width, *[hidden] * (params.head_layers - 1), target]
    linears = [nn.Linear(before, after) for before, after in pairwise(widths)]
    return nn.Sequential(linears[0], *(layer for linear in linears[1:] for layer in (nn.SiLU(), linear)))


def init_parameter(name: str, parameter: Tensor, generator: torch.Generator | None = None) -> None:
    """Initialize biases with 0 and weights as Xavier does, as the layers of DiT."""
    with torch.no_grad():
        if name.endswith("bias"):
            parameter.zero_()
        else:
            nn.init.xavier_uniform_(parameter, generator=generator)
