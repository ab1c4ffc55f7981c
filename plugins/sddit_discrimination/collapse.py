"""Signs of collapse, as tensors: read off what a step computes anyway, with no host sync.

`mean` averages over the ranks of a run on several processes, so that a sign is one of the whole batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

MOST_ROWS = 256  # of a Gram matrix


def kl_to_uniform(p: Tensor, mean: Callable[[Tensor], Tensor]) -> Tensor:
    """KL of the mean of assignments [..., K] to the uniform one: 0 if all are used alike, ln K if one takes all."""
    usage = mean(p.flatten(0, -2).mean(dim=0))  # [K]
    return math.log(len(usage)) + torch.xlogy(usage, usage).sum()


def in_use(logits: Tensor, mean: Callable[[Tensor], Tensor]) -> Tensor:
    """Share of the K prototypes that are the first choice of some row of logits [..., K]."""
    chosen = logits.new_zeros(logits.shape[-1]).index_fill_(0, logits.argmax(dim=-1).flatten(), 1.0)
    return (mean(chosen) > 0).to(chosen).mean()


def deviation(features: Tensor, mean: Callable[[Tensor], Tensor]) -> Tensor:
    """Standard deviation of each feature [n, D] -> [D]: that within the ranks, and that between their means."""
    within, center = features.std(dim=0, correction=0), features.mean(dim=0)
    return (mean(within.square()) + mean((center - mean(center)).square())).sqrt()


def effective_rank(features: Tensor, gather: Callable[[Tensor], Tensor]) -> Tensor:
    """Participation ratio (tr C)^2 / tr C^2 of the covariance C of features [n, D], from at most 256 of all ranks' rows."""
    rows = thinned(gather(thinned(features)))
    rows = rows - rows.mean(dim=0)
    gram = rows @ rows.T  # has the eigenvalues of C
    return gram.trace() ** 2 / gram.square().sum().clamp(min=torch.finfo(gram.dtype).tiny)


def thinned(rows: Tensor) -> Tensor:
    """At most 256 of the rows, evenly spread."""
    return rows[:: -(-len(rows) // MOST_ROWS)]


def label_divergence(log_p: Tensor, labels: Tensor, null: int) -> tuple[Tensor, Tensor]:
    """Mean KL between the assignments log p [B, K] of two images of one class, and of two classes.

    Images with a dropped label are left out. Without two images of one class the second value stands for the first:
    nothing then speaks for a shortcut.
    """
    p = log_p.exp()
    kl = (p * log_p).sum(dim=1, keepdim=True) - p @ log_p.T  # [B, B]
    labelled = labels != null
    pairs = labelled[:, None] & labelled[None, :]
    same = labels[:, None] == labels[None, :]
    itself = torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    within, between = pairs & same & ~itself, pairs & ~same
    mean_between = _masked_mean(kl, between)
    return torch.where(within.any(), _masked_mean(kl, within), mean_between), mean_between


def _masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    return (values * mask).sum() / mask.sum().clamp(min=1)
