"""Compute signs of collapse as tensors from quantities of the step, without host sync.

`mean` averages over the ranks of a distributed run, so that a sign describes the entire batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor


def kl_to_uniform(p: Tensor, mean: Callable[[Tensor], Tensor]) -> Tensor:
    """Return the KL divergence of the mean assignment of [..., K] from uniform: 0 if uniform, ln K if one prototype."""
    usage = mean(p.flatten(0, -2).mean(dim=0))  # [K]
    return math.log(len(usage)) + torch.xlogy(usage, usage).sum()


def fraction_used(logits: Tensor, mean: Callable[[Tensor], Tensor]) -> Tensor:
    """Return the fraction of the K prototypes that are the argmax of some row of logits [..., K]."""
    chosen = logits.new_zeros(logits.shape[-1]).index_fill_(0, logits.argmax(dim=-1).flatten(), 1.0)
    return (mean(chosen) > 0).to(chosen).mean()


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
