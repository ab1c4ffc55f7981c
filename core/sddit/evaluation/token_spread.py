"""Measure how much tokens differ from each other, for the monitors of losses. Computes on the device, without sync.

Torch is imported only when something is measured. `mean` and `gather` reach all ranks of a distributed run, so that a
number describes the entire batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from sddit.interfaces import Monitor

if TYPE_CHECKING:
    from torch import Tensor

SPREAD_MONITORS = (
    Monitor("feature_std", "Standard deviation of the student's tokens per dimension", "steady", low=1e-3),
    Monitor("effective_rank", "Effective rank of the student's tokens", "steady", low=2.0),
)
MAX_ROWS = 256  # of a Gram matrix


def token_spread(
    tokens: Tensor, *, mean: Callable[[Tensor], Tensor], gather: Callable[[Tensor], Tensor]
) -> dict[str, Tensor]:
    """Return the values of `SPREAD_MONITORS` for tokens [B, n, D]."""
    features = tokens.flatten(0, 1)
    return {"feature_std": feature_std(features, mean), "effective_rank": effective_rank(features, gather)}


def feature_std(features: Tensor, mean: Callable[[Tensor], Tensor]) -> Tensor:
    """Return the standard deviation of each feature, [n, D] -> [D], within ranks and between their means."""
    within, center = features.std(dim=0, correction=0), features.mean(dim=0)
    return (mean(within.square()) + mean((center - mean(center)).square())).sqrt()


def effective_rank(features: Tensor, gather: Callable[[Tensor], Tensor]) -> Tensor:
    """Return the participation ratio (tr C)^2 / tr C^2 of the covariance C of at most 256 features [n, D]."""
    import torch

    rows = subsample(gather(subsample(features)))
    rows = rows - rows.mean(dim=0)
    gram = rows @ rows.T  # has the eigenvalues of C
    return gram.trace() ** 2 / gram.square().sum().clamp(min=torch.finfo(gram.dtype).tiny)


def subsample(rows: Tensor) -> Tensor:
    """Return at most 256 of the rows, evenly spaced."""
    return rows[:: -(-len(rows) // MAX_ROWS)]
