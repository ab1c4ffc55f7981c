"""Fixtures of a DiT in float64 with random nonzero weights, so that no comparison holds trivially."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from sddit_dit.backbone import DiT
from sddit_dit.params import DiTParams
from sddit_flash.kernels import Eager
from sddit_flash.params import EagerParams

Make = Callable[..., DiT]


@pytest.fixture
def make() -> Make:
    """`make(depth=2, ..., image=, num_classes=, outputs=, raw_start=)`: a tiny DiT with random weights everywhere."""

    def build(
        *,
        image: tuple[int, int, int] = (3, 8, 8),
        num_classes: int = 5,
        outputs: int = 1,
        dtype: torch.dtype = torch.float64,
        raw_start: bool = False,
        **settings: Any,
    ) -> DiT:
        params = DiTParams(**{"depth": 2, "width": 16, "heads": 2, **settings})
        model = DiT(params, image=image, num_classes=num_classes, outputs=outputs, attention=Eager(EagerParams()))
        generator = torch.Generator().manual_seed(3)
        for parameter in [] if raw_start else model.parameters():
            torch.nn.init.normal_(parameter, std=0.3, generator=generator)
        return model.to(dtype)

    return build


DECODERS: dict[str, dict[str, Any]] = {
    "shared": {"decoder": {"depth": 2, "width": 12, "heads": 3}},
    "own": {"decoder": {"depth": 1, "width": 12, "heads": 3, "bridge": "own"}},
    "learned": {"decoder": {"depth": 2, "width": 12, "heads": 3}, "fill": "learned", "null_label": "zero"},
    "zero": {"decoder": {"depth": 1, "width": 20, "heads": 2}, "fill": "zero"},
    "split": {"depth": 3, "decoder": {"style": "split", "depth": 1}},
    "split learned": {"depth": 3, "decoder": {"style": "split", "depth": 2}, "fill": "learned"},
    "class token": {"cls_token": True, "decoder": {"depth": 1, "width": 12, "heads": 3}},
    "split zero, class token": {
        "cls_token": True,
        "depth": 3,
        "decoder": {"style": "split", "depth": 1},
        "fill": "zero",
    },
}


ROUTES: dict[str, dict[str, Any]] = {
    "carried": {"depth": 4, "route": {"from": 1, "to": 3}},
    "fused": {"depth": 5, "route": {"from": 0.2, "to": 4, "fill": "fused"}},
    "carried, class token": {"depth": 4, "cls_token": True, "route": {"from": 2, "to": 3}},
    "to a separate decoder": {"depth": 3, "route": {"from": 1}, "decoder": {"depth": 1, "width": 12, "heads": 3}},
}


@pytest.fixture(params=[*DECODERS.values(), *ROUTES.values()], ids=[*DECODERS, *ROUTES])
def masked_settings(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Return each backbone that can hide tokens."""
    settings: dict[str, Any] = request.param
    return settings
