"""Fixtures of an MDT in float64 with random nonzero weights, so that no comparison holds trivially."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from sddit_flash.kernels import Eager
from sddit_flash.params import EagerParams
from sddit_masking.mdt import MDT
from sddit_masking.params import MDTParams

Make = Callable[..., MDT]
STRUCTURES: dict[str, dict[str, Any]] = {
    "v1": {"version": "v1", "depth": 4},
    "v2": {"depth": 6, "decoder_depth": 2},
    "long skips only": {"depth": 5, "decoder_depth": 1, "input_skips": False},
    "input skips only": {"depth": 4, "decoder_depth": 3, "long_skips": False},
}


@pytest.fixture
def make() -> Make:
    """`make(version="v1", depth=5, ..., image=, num_classes=, outputs=, raw_start=)`: a tiny MDT, random everywhere."""

    def build(
        *,
        image: tuple[int, int, int] = (3, 8, 8),
        num_classes: int = 5,
        outputs: int = 1,
        raw_start: bool = False,
        **settings: Any,
    ) -> MDT:
        params = MDTParams(**{"depth": 4, "decoder_depth": 2, "width": 16, "heads": 2, **settings})
        model = MDT(params, image=image, num_classes=num_classes, outputs=outputs, attention=Eager(EagerParams()))
        generator = torch.Generator().manual_seed(3)
        for parameter in [] if raw_start else model.parameters():
            torch.nn.init.normal_(parameter, std=0.3, generator=generator)
        return model.double()

    return build


@pytest.fixture(params=STRUCTURES.values(), ids=STRUCTURES.keys())
def structure(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Return both published structures, and each kind of skip separately."""
    settings: dict[str, Any] = request.param
    return settings
