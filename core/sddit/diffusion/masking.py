"""Draw the tokens that a view hides, for every pair sampler. Torch is imported only when a mask is drawn."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

from sddit.errors import error

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from sddit.interfaces import Draws

MaskShape = Literal["random", "block", "grid", "cells"]

ASPECTS = (0.3, 1 / 0.3)
"""Height over width of a hidden block, as iBOT and BEiT draw it (arXiv:2106.08254, algorithm 1)."""

BAYER = ((0, 8, 2, 10), (12, 4, 14, 6), (3, 11, 1, 9), (15, 7, 13, 5))
"""Bayer's ordered dither: its first 4, 8 or 12 positions form regular lattices."""


def keep_count(tokens: int, ratio: float) -> int:
    """Return the number K of visible tokens when a fraction `ratio` of `tokens` is hidden: floor(L (1 - r) + 1e-9).

    The small term undoes rounding: 10 (1 - 0.9) is 0.9999999999999998, and one token must stay visible. A ratio above 0
    hides at least one token, except for ratios below 1e-9 / L, which a decaying schedule passes on its way to 0.

    Raises SdditError (SD-R108) for a ratio outside [0, 1) and for one that leaves no token.
    """
    if 0 <= ratio < 1 and (kept := math.floor(tokens * (1 - ratio) + 1e-9)):
        return kept
    raise error(
        "SD-R108",
        "a mask leaves no token",
        where="mask_ratio",
        got=f"{ratio:g} of {tokens} tokens",
        expect=f"0 to {1 - 1 / tokens:g}, so that one token stays",
        fix="lower mask_ratio, or use a smaller patch",
    )


def draw_ratio(draws: Draws, ratio: float, spread: float) -> float:
    """Draw a ratio in [ratio, ratio + spread), the same for the entire step on every rank. Needs no device sync."""
    return ratio + spread * draws.uniform("mask/ratio", scope="step").item() if spread else ratio


def draw_mask(
    draws: Draws,
    purpose: str,
    *,
    grid: tuple[int, int],
    ratio: float,
    shape: MaskShape = "random",
    device: torch.device | str | None = None,
) -> Tensor | None:
    """Draw the visible tokens of each sample, [B, K] int64 ascending, or None if nothing is hidden.

    Every sample hides the same number of tokens, so that a masked batch is a shorter dense sequence.

    Args:
        draws: keyed randomness; the same purpose gives the same masks in every arm of a seed.
        purpose: the name of the draw, `mask` where the student is masked.
        grid: tokens along H and W.
        ratio: fraction of tokens to hide; K is its `keep_count`.
        shape: random: any tokens, each equally likely (MAE, arXiv:2111.06377); block: the hidden ones form one
            connected region of random position and aspect, close to a rectangle; grid: the hidden ones are spread as
            evenly as a shifted 4 x 4 Bayer pattern allows (at 1/2 a checkerboard, at 3/4 one of each 2 x 2 stays
            visible); cells: as even over cells of 2 x 2 tokens as the ratio allows, which tokens of a cell is drawn for
            each cell.
        device: device of the result; None: that of the draws.
    """
    tokens = math.prod(grid)
    kept = keep_count(tokens, ratio)
    if kept == tokens:
        return None
    scores = {"random": _random, "block": _block, "grid": _lattice, "cells": _cells}[shape](
        draws, purpose, grid
    )  # [B, N]
    return scores.argsort(dim=1)[:, :kept].sort(dim=1).values.to(device)


# Each function below returns a score per token, [B, N]; the tokens with the lowest scores stay visible.


def _random(draws: Draws, purpose: str, grid: tuple[int, int]) -> Tensor:
    return draws.uniform(purpose, (math.prod(grid),))


def _block(draws: Draws, purpose: str, grid: tuple[int, int]) -> Tensor:
    """Return minus a distance from a random centre that increases with |dy| and with |dx|.

    The tokens within any distance are connected: from each of them, a path along x and then along y to the centre stays
    within that distance.
    """
    import torch

    height, width = grid
    u = draws.uniform(purpose, (3,))
    low, high = (math.log(bound) for bound in ASPECTS)
    stretch = torch.exp((low + (high - low) * u[:, 2:]) / 2)  # [B, 1]: square root of height over width
    rows, columns = (torch.arange(count, device=u.device) + 0.5 for count in grid)
    dy = (rows - height * u[:, :1]).abs() / stretch  # [B, H]
    dx = (columns - width * u[:, 1:2]).abs() * stretch  # [B, W]
    dy, dx = dy[:, :, None], dx[:, None, :]
    distance = torch.maximum(dy, dx) + 1e-3 * (dy + dx)  # its balls are rectangles; the small term makes it increase
    return -distance.flatten(1)


def _lattice(draws: Draws, purpose: str, grid: tuple[int, int]) -> Tensor:
    """Return a randomly shifted Bayer pattern; the remaining numbers of the draw break ties."""
    import torch

    u = draws.uniform(purpose, (2 + math.prod(grid),))
    pattern = torch.tensor(BAYER, device=u.device)
    period = len(BAYER)
    shift = (period * u[:, :2]).long()  # [B, 2]
    rows = (torch.arange(grid[0], device=u.device) + shift[:, :1]) % period  # [B, H]
    columns = (torch.arange(grid[1], device=u.device) + shift[:, 1:]) % period  # [B, W]
    return pattern[rows[:, :, None], columns[:, None, :]].flatten(1) + u[:, 2:]


def _cells(draws: Draws, purpose: str, grid: tuple[int, int]) -> Tensor:
    """Return the rank of each token among those of its 2 x 2 cell, in random order; the draw itself breaks ties.

    Cells at the edges of an odd grid have fewer tokens: the missing ones rank last.
    """
    from torch.nn import functional as F

    height, width = grid
    u = draws.uniform(purpose, (math.prod(grid),))  # [B, N]
    padded = F.pad(u.view(-1, height, width), (0, width % 2, 0, height % 2), value=1.0)
    rows, columns = padded.shape[1] // 2, padded.shape[2] // 2
    cells = padded.view(-1, rows, 2, columns, 2).permute(0, 1, 3, 2, 4).reshape(-1, rows, columns, 4)
    ranks = cells.argsort(dim=-1).argsort(dim=-1).view(-1, rows, columns, 2, 2).permute(0, 1, 3, 2, 4)
    return ranks.reshape(padded.shape)[:, :height, :width].flatten(1) + u
