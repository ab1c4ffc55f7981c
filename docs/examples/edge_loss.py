"""Edge loss: the edges of the estimated clean image against those of the true one. A plugin in one file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from sddit import Registry, hookimpl
from sddit.interfaces import Context, Cost, Loss, LossParams, Needs, Outputs, View, Want
from sddit.losses import LossTerm


class EdgeParams(LossParams):
    """The keys of [loss.LABEL], in addition to those that every loss has."""

    calm: float = Field(1.0, gt=0, description="Noise level above which an image counts less than half.")

    def needs(self) -> Needs:
        """What forward reads of each student view: the network's output, and the clean image made of it."""
        return Needs(student=Want(output=True))

    def cost(self, *_: Any, **__: Any) -> Cost:
        """What its heads cost in a forward pass of one image, Cost(parameters, FLOPs, activations): it has none."""
        return Cost()


class EdgeLoss(LossTerm):
    """Mean squared error of the differences between neighbouring pixels, weighted by calm^2 / (calm^2 + sigma^2)."""

    def __init__(self, params: EdgeParams, **_: object) -> None:
        super().__init__()
        self.calm = params.calm

    def forward(self, ctx: Context, views: Mapping[str, View], outputs: Mapping[str, Outputs]) -> Tensor:
        """One value per image, [B]."""
        losses = []
        for name, view in views.items():
            error = outputs[name].x0 - view.x0  # [B, C, H, W]
            across = error.diff(dim=3).square().mean(dim=(1, 2, 3))  # [B]
            down = error.diff(dim=2).square().mean(dim=(1, 2, 3))
            sigma = ctx.schedule.sigma(view.t)  # [B]
            losses.append((across + down) * self.calm**2 / (self.calm**2 + sigma**2))
        self.log("edges", torch.stack(losses).mean())
        return torch.stack(losses).mean(dim=0)


@hookimpl
def register_losses(registry: Registry[Loss]) -> None:
    registry.add("edges", EdgeLoss, params=EdgeParams, summary="Edges of the estimated clean image.")
