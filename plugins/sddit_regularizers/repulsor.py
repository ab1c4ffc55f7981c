"""Define the repulsor loss, which separates the features of an image from those of the images before it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sddit.interfaces import Context, Outputs, View
from sddit.losses import LossTerm
from sddit_regularizers.params import RepulsorParams


class Repulsor(LossTerm):
    """Repulsion from a queue of past features (arXiv:2512.08648), per sample [B].

    L_i = log mean_k exp((p_i . q_k - 1) / tau), between -2 / tau and 0, where p_i is the direction, seen from the mean
    of the queue, of the projection of image i, and q_k are those of the newest projections of earlier steps, without
    gradient. The head projects the normalized mean token after one block. The batch enters the queue after the step,
    that of all processes in its order, so all of them hold one queue. The head and the queue are not exported.

    The queue begins with fixed random directions, as in MoCo (arXiv:1911.05722), which images replace.

    Without the mean as origin, all features would move away from an older queue to its opposite side, and be equal. A
    trained head changes at the rate of the optimizer, at any weight of this loss; a fixed one does not.
    """

    queue: Tensor

    def __init__(self, params: RepulsorParams, *, widths: Mapping[Any, int], **_: Any) -> None:
        super().__init__()
        self.params = params
        width = widths[params.tap]
        self.head: nn.Module
        if params.projection == "trained":
            self.head = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, params.dimension))
        else:
            self.head = nn.Linear(width, params.dimension, bias=False).requires_grad_(False)
        self.register_buffer("queue", random_directions(params.queue, params.dimension))
        self._staged: dict[str, list[Tensor]] = {}  # projections of each micro-batch, by view

    def forward(self, ctx: Context, views: Mapping[str, View], outputs: Mapping[str, Outputs]) -> Tensor:
        students = {name: view for name, view in views.items() if view.network == "student"}
        values = []
        with torch.autocast(next(iter(views.values())).x.device.type, enabled=False):
            for name in students:
                projections = self.project(outputs[name].taps[self.params.tap].patch)
                self._staged.setdefault(name, []).append(projections.detach())
                values.append(self.repulsion(ctx, projections))
        return torch.stack(values).mean(dim=0)

    def project(self, tokens: Tensor) -> Tensor:
        """Return the projections [B, d] of visible tokens [B, n, D]."""
        means = tokens.to(self.queue.dtype).mean(dim=1)
        projections: Tensor = self.head(F.layer_norm(means, means.shape[1:]))
        return projections

    def repulsion(self, ctx: Context, projections: Tensor) -> Tensor:
        """Return the loss of each projection, [B], and log signs of collapse."""
        center = self.queue.mean(dim=0)
        directions = F.normalize(projections - center, dim=1)
        cosines = directions @ F.normalize(self.queue - center, dim=1).T  # [B, K]
        with torch.no_grad():
            self.log("cosine_max", cosines.amax(dim=1))
            self.log("cosine_square", cosines.square())
            self.log("drift", ctx.mean(directions.mean(dim=0)).norm())
        return ((cosines - 1) / self.params.temperature).logsumexp(dim=1) - math.log(len(self.queue))

    @torch.no_grad()
    def after_step(self, ctx: Context) -> None:
        """Append the projections of the batch, over all ranks, and drop as many of the oldest."""
        new = [ctx.gather(part) for parts in self._staged.values() for part in parts]
        if new:
            self.queue.copy_(torch.cat([self.queue, *new])[-len(self.queue) :])
        self.discard()

    def staged(self) -> list[Tensor]:
        return [part for parts in self._staged.values() for part in parts]

    def discard(self) -> None:
        self._staged.clear()


def random_directions(count: int, dimension: int) -> Tensor:
    """Return vectors of length 1, [count, dimension], the same in every call up to the default dtype."""
    drawn = torch.randn(count, dimension, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return F.normalize(drawn, dim=1).to(torch.get_default_dtype())
