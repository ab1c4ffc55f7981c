"""Fixed-target loss: tokens that predict the features of a frozen network of the clean image. A plugin in one file."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from pydantic import Field
from torch import Tensor, nn

from sddit import LossTerm, Registry, hookimpl
from sddit.interfaces import (
    BackboneParams,
    Context,
    Cost,
    Loss,
    LossParams,
    Needs,
    Outputs,
    Shapes,
    Tap,
    Tokens,
    View,
    ViewSpec,
    Want,
)


class FixedTargetParams(LossParams):
    """Settings of [loss.LABEL]."""

    features: int = Field(32, ge=1, description="Features of each token.")

    def needs(self) -> Needs:
        """Request the tokens after the encoder."""
        return Needs(student=Want(taps=("encoder",)))

    def cost(self, backbone: BackboneParams, shapes: Shapes, view: ViewSpec, num_kept: int) -> Cost:
        """Return the trained head, the FLOPs of both networks, and the frozen target."""
        tokens = math.prod(backbone.grid(shapes))
        width, pixels = backbone.width("encoder"), math.prod(shapes.image) // tokens
        flops = 2 * (num_kept * width + tokens * pixels) * self.features
        head, target = (width + 1) * self.features, (pixels + 1) * self.features
        return Cost(parameters=head, flops=flops, activations=num_kept * self.features, frozen=target)


class FixedTarget(LossTerm):
    """1 - cosine of a head's output and the target's features, averaged over the visible tokens."""

    def __init__(
        self,
        params: FixedTargetParams,
        *,
        widths: Mapping[Tap, int],
        grid: tuple[int, int],
        image: tuple[int, int, int],
        **_: object,
    ) -> None:
        super().__init__()
        patch = (image[1] // grid[0], image[2] // grid[1])
        self.head = nn.Linear(widths["encoder"], params.features)
        self.target = nn.Sequential(nn.Conv2d(image[0], params.features, patch, stride=patch), nn.GELU())
        self.target.requires_grad_(False)  # not trained, and in evaluation mode; load its weights here, if it has some

    def forward(self, ctx: Context, views: Mapping[str, View], outputs: Mapping[str, Outputs]) -> Tensor:
        """Return one value per image, [B]."""
        values = []
        for name, view in views.items():
            tokens = outputs[name].taps["encoder"]
            features = self.target(view.x0).flatten(2).mT  # [B, N, D]
            goal = Tokens(features).at(tokens.index)  # [B, K, D], at the visible tokens
            found = self.head(tokens.patch)
            cosine = torch.cosine_similarity(found.to(view.x.dtype), goal.to(view.x.dtype), dim=2)  # [B, K]
            values.append(1 - cosine.mean(dim=1))
        return torch.stack(values).mean(dim=0)


@hookimpl
def register_losses(registry: Registry[Loss]) -> None:
    registry.add("fixed_target", FixedTarget, params=FixedTargetParams, summary="Features of a frozen network.")
