"""A loss that sees its target, on purpose: sanity.toml shows that the report says so."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from sddit import Registry, hookimpl
from sddit.interfaces import Context, Loss, LossParams, Needs, Outputs, View, Want
from sddit.losses import LossTerm


class LeakingParams(LossParams):
    """No keys beside those that every loss has."""

    def needs(self) -> Needs:
        return Needs(student=Want(output=True))


class LeakingLoss(LossTerm):
    """A layer that mends the estimate of the clean image, given the estimate and, by mistake, the clean image itself."""

    def __init__(self, params: LeakingParams, **_: object) -> None:
        super().__init__()
        self.mend = nn.Linear(2, 1)

    def forward(self, ctx: Context, views: Mapping[str, View], outputs: Mapping[str, Outputs]) -> Tensor:
        """One value per image, [B]."""
        (name, view), *_ = views.items()
        seen = torch.stack([outputs[name].x0, view.x0], dim=-1)  # [B, C, H, W, 2]; the second is the mistake
        mended = self.mend(seen.to(self.mend.weight.dtype)).squeeze(-1)
        return (mended - view.x0).square().mean(dim=(1, 2, 3))


@hookimpl
def register_losses(registry: Registry[Loss]) -> None:
    registry.add("leaking", LeakingLoss, params=LeakingParams, summary="Sees its target, on purpose.")
