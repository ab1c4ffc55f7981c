"""A plugin in one file: a loss with a frozen module and a head, for tests on several processes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from sddit import LossTerm, Registry, hookimpl
from sddit.interfaces import LossParams, Needs, Want


class FrozenParams(LossParams):
    """Settings."""

    def needs(self) -> Needs:
        return Needs(Want(taps=("encoder",)))


class Frozen(LossTerm):
    """The tokens' mean through a head, against a frozen network with BatchNorm of the clean image."""

    def __init__(self, params: FrozenParams, *, widths: Mapping[Any, int], **_: object) -> None:
        super().__init__()
        self.target = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8)).requires_grad_(False)
        self.head = nn.Linear(widths["encoder"], 8)

    def forward(self, ctx: Any, views: Mapping[str, Any], outputs: Mapping[str, Any]) -> Tensor:
        goal = self.target(views["student"].x0.flatten(1)[:, :4])  # [B, 8]
        return (self.head(outputs["student"].taps["encoder"].patch.mean(dim=1)) - goal).square().mean(dim=1)


@hookimpl
def register_losses(registry: Registry[Any]) -> None:
    registry.add("frozen", Frozen, params=FrozenParams, summary="For a test.")
