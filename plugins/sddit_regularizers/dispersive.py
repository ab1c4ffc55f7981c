"""Define the dispersive loss, which separates the features of the images of a batch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sddit.interfaces import Context, Outputs, Tokens, View
from sddit.losses import LossTerm
from sddit_regularizers.distances import class_distances, squared_distances
from sddit_regularizers.params import DispersiveParams


class Dispersive(LossTerm):
    """A contrastive loss without positive pairs (arXiv:2506.09027), one value for the global batch.

    z_i [D] are the flattened tokens of image i after one block, u_i = z_i / |z_i|. Means run over all pairs of the
    batch, i = j included:

        l2          log mean_ij exp(-D_ij / tau), D_ij = |z_i - z_j|^2 / D
        cosine      log mean_ij exp((u_i . u_j - 1) / tau)
        hinge       mean_ij max(0, u_i . u_j + margin - 1)^2
        covariance  sum over m != n of Cov(u)_mn^2

    The first is between -ln B, for a batch of B images far from each other, and 0, for equal ones. The paper's cosine
    variant has no -1, which adds a constant without gradient. Its hinge is max(0, margin - distance)^2 of a distance
    that we do not know; ours is 1 - u_i . u_j, since a margin on features of any length may be met from the start.
    """

    def __init__(self, params: DispersiveParams, **_: Any) -> None:
        super().__init__()
        self.params = params

    def forward(self, ctx: Context, views: Mapping[str, View], outputs: Mapping[str, Outputs]) -> Tensor:
        students = {name: view for name, view in views.items() if view.network == "student"}
        values = []
        with torch.autocast(next(iter(views.values())).x.device.type, enabled=False):
            for name, view in students.items():
                values.append(self.value(ctx, view.labels, self.features(outputs[name].taps[self.params.tap])))
        return torch.stack(values).mean()

    def features(self, tokens: Tokens) -> Tensor:
        """Return the tokens of each image as one vector [b, D], in float32 or wider: of length 1, except for l2.

        There they are divided by sqrt(D), so that |z_i - z_j|^2 is the mean over dimensions.
        """
        z = tokens.patch.to(torch.promote_types(tokens.patch.dtype, torch.float32)).flatten(1)
        if self.params.variant == "l2":
            return z / math.sqrt(z.shape[1])
        return F.normalize(z, dim=1)

    def value(self, ctx: Context, labels: Tensor, z: Tensor) -> Tensor:
        """Return the loss of features [b, D] of this rank, compared with those of all ranks, and log distances."""
        # No result depends on the center: it only saves digits where all features have a large common part.
        rows = z - ctx.mean(z.detach().mean(dim=0))
        columns = ctx.gather(rows)  # [B, D]
        gram = rows @ columns.T  # [b, B]
        distances = squared_distances(gram, rows, columns)
        with torch.no_grad():
            within, between = class_distances(distances, labels, ctx.gather(labels), ctx.num_classes, ctx.mean)
            self.log("distance_within", within)
            self.log("distance_between", between)
        match self.params.variant:
            case "l2":
                return log_mean_exp(ctx, -distances / self.params.temperature)
            case "cosine":
                return log_mean_exp(ctx, -distances / (2 * self.params.temperature))
            case "hinge":
                return ctx.mean((self.params.margin - distances / 2).clamp(min=0).square().mean())
            case "covariance":
                variances = ctx.mean(rows.square().mean(dim=0))  # [D]
                # The sum of all squared covariances is the mean of the squared products of centered features.
                return ctx.mean(gram.square().mean()) - variances.square().sum()


def log_mean_exp(ctx: Context, exponents: Tensor) -> Tensor:
    """Return log mean exp of [b, B] over all ranks. Each image is paired with itself, exp(0), so nothing underflows."""
    return ctx.mean(exponents.exp().mean()).log()
