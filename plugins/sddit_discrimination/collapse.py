"""Compute signs of collapse as tensors from quantities of the step, without host sync.

`mean` averages over the ranks of a distributed run, so that a sign describes the entire batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

MAX_ROWS = 256  # of a Gram matrix


def kl_to_uniform(p: Tensor, mean: Callable[[Tensor], Tensor]) -> Tensor:
    """Return the KL divergence of the mean assignment of [..., K] from uniform: 0 if uniform, ln K if one prototype."""
    usage = mean(p.flatten(0, -2).mean(dim=0))  # [K]
    return math.log(len(usage)) + torch.xlogy(usage, usage).sum()


def fraction_used(logits: Tensor, mean: Callable[[Tensor], Tensor]) -> Tensor:
    """Return the fraction of the K prototypes that are the argmax of some row of logits [..., K]."""
    chosen = logits.new_zeros(logits.shape[-1]).index_fill_(0, logits.argmax(dim=-1).flatten(), 1.0)
    return (mean(chosen) > 0).to(chosen).mean()


def feature_std(features: Tensor, mean: Callable[[Tensor], Tensor]) -> Tensor:
    """Return the standard deviation of each feature, [n, D] -> [D], within ranks and between their means."""
    within, center = features.std(dim=0, correction=0), features.mean(dim=0)
    return (mean(within.square()) + mean((center - mean(center)).square())).sqrt()


def effective_rank(features: Tensor, gather: Callable[[Tensor], Tensor]) -> Tensor:
    """Return the participation ratio (tr C)^2 / tr C^2 of the covariance C of at most 256 features [n, D]."""
    rows = subsample(gather(subsample(features)))
    rows = rows - rows.mean(dim=0)
    gram = rows @ rows.T  # has the eigenvalues of C
    return gram.trace() ** 2 / gram.square().sum().clamp(min=torch.finfo(gram.dtype).tiny)


def subsample(rows: Tensor) -> Tensor:
    """Return at most 256 of the rows, evenly spaced."""
    return rows[:: -(-len(rows) // MAX_ROWS)]


def label_divergence(log_p: Tensor, labels: Tensor, null: int) -> tuple[Tensor, Tensor]:
    """Return the mean KL between assignments log p [B, K] of images of the same class, and of different classes.

    Images with a dropped label are excluded. Without two images of the same class, the second value replaces the first,
    so that it does not indicate a shortcut.
    """
    p = log_p.exp()
    kl = (p * log_p).sum(dim=1, keepdim=True) - p @ log_p.T  # [B, B]
    labelled = labels != null
    pairs = labelled[:, None] & labelled[None, :]
    same = labels[:, None] == labels[None, :]
    identity = torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    within, between = pairs & same & ~identity, pairs & ~same
    mean_between = _masked_mean(kl, between)
    return torch.where(within.any(), _masked_mean(kl, within), mean_between), mean_between


def _masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    return (values * mask).sum() / mask.sum().clamp(min=1)
