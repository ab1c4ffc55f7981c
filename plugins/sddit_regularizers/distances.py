"""Compare the samples of a batch by pairs: squared distances, and their means within and between classes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def squared_distances(gram: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Return |r_i - c_j|^2 [b, B] of rows [b, D] and columns [B, D] from their products [b, B].

    What is less than the rounding of the products is 0, so that an image has no distance from itself.
    """
    squares = rows.square().sum(dim=1)[:, None] + columns.square().sum(dim=1)
    distances = squares - 2 * gram
    rounding = torch.finfo(gram.dtype).eps * rows.shape[1] ** 0.5 * squares.detach()
    return distances.where(distances > rounding, torch.zeros_like(distances))


def class_distances(
    distances: Tensor, own: Tensor, labels: Tensor, null: int, mean: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """Return the mean of distances [b, B] over pairs of the same class, and over pairs of different classes.

    `own` [b] are the labels of the rows, `labels` [B] those of the columns; pairs with a dropped label are excluded, as
    are those of an image with itself. Without a pair of one class, the second mean replaces the first. `mean` averages
    over the ranks.
    """
    labelled = (own != null)[:, None] & (labels != null)
    same = own[:, None] == labels
    within, between = labelled & same, labelled & ~same
    sums = [(distances * within).sum(), (distances * between).sum()]
    # Each labelled image is also paired with itself, at distance 0.
    counts = [within.sum() - (own != null).sum(), between.sum()]
    totals = mean(torch.stack([*sums, *(count.to(distances) for count in counts)]))
    mean_within, mean_between = totals[:2] / totals[2:].clamp(min=torch.finfo(totals.dtype).tiny)
    return torch.where(totals[2] > 0, mean_within, mean_between), mean_between
