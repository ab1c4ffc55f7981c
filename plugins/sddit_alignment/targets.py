"""Prepare the targets of the align loss: normalize them, and permute them for the control arm."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from sddit.diffusion.draws import generator
from sddit.errors import error, one_of
from sddit.interfaces import Tokens

EPS = 1e-6
"""Added to variances, so that constant channels stay finite."""


def normalize_over_tokens(tokens: Tensor) -> Tensor:
    """Return tokens [B, n, D] with mean 0 and variance 1 of each channel over the tokens of its sample."""
    variance, mean = torch.var_mean(tokens, dim=1, keepdim=True, correction=0)
    return (tokens - mean) / (variance + EPS).sqrt()


def normalize_channels(x0: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Return images [B, C, H, W] with the mean and standard deviation of each channel removed."""
    center, scale = (torch.tensor(values, dtype=x0.dtype, device=x0.device)[:, None, None] for values in (mean, std))
    return (x0 - center) / scale


def tokens_of(extras: Mapping[str, Tensor], name: str, grid: tuple[int, int]) -> Tensor:
    """Return features [B, E, h, w] of a view as tokens [B, N, E], resized bilinearly to the grid as in REPA."""
    if name not in extras:
        expect = one_of(name, extras) if extras else "features of a data set"
        raise error("SD-R108", f"the view has no features {name!r}", where="extras", got="none", expect=expect)
    features = extras[name]
    if tuple(features.shape[2:]) != grid:
        features = F.interpolate(features, size=grid, mode="bilinear")
    return features.flatten(2).transpose(1, 2)


def random_order(count: int) -> Tensor:
    """Return the numbers from 0 to count - 1 in a fixed random order, [count] int64."""
    return torch.randperm(count, generator=generator(0, "alignment/align/permute"))


def permute_tokens(tokens: Tokens, order: Tensor) -> Tokens:
    """Return the tokens, each moved to the place of another: one cycle through all of a sample in the order [N]."""
    patch, index = tokens.patch, tokens.index
    ranks = order.expand(len(patch), -1) if index is None else order[index]  # [B, n]
    cycle = ranks.argsort(dim=1)
    origin = torch.empty_like(cycle).scatter_(1, cycle, cycle.roll(-1, dims=1))
    return Tokens(patch.gather(1, origin[:, :, None].expand_as(patch)), index)


def permute_channels(tokens: Tokens, order: Tensor) -> Tokens:
    """Return the tokens with each channel moved to the place of another: one cycle in the order [D]."""
    origin = torch.empty_like(order).scatter_(0, order, order.roll(-1))
    return Tokens(tokens.patch[..., origin], tokens.index)
