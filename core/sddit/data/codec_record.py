"""Record in a cache of latents which codec made them. Torch-free."""

from __future__ import annotations

from math import isfinite
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from sddit.interfaces import CodecParams, ColourMap, Selected, Sha256
from sddit.interfaces.params import settings_json


class CodecRecord(BaseModel):
    """The codec of a cache. The scale and the shift of its latents are in the index itself."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)

    name: str = Field(min_length=1)  # qualified, such as sddit/taef2
    settings: dict[str, Any]  # as a recipe has them, without the place of the weights
    sha256: Sha256  # of the weights; empty: it has none
    factor: int = Field(ge=1)  # pixels along each side of an image for one place of a latent
    pixel_range: tuple[float, float]


def record_of(codec: Selected[CodecParams]) -> CodecRecord:
    """Return what a cache records of the codec that encodes images for it."""
    params = codec.params.fingerprinted()
    facts = params.facts()
    return CodecRecord(
        name=codec.component.qualified,
        settings=settings_json(params, free=False),
        sha256=params.sha256,
        factor=facts.factor,
        pixel_range=facts.pixel_range,
    )


def is_colour_map_of(channels: int, colours: ColourMap) -> bool:
    """Return whether a map is one of latents with this number of channels to three colours."""
    rows = (*colours.weights, colours.offset, colours.r2)
    sizes = [len(row) for row in rows]
    return colours.factor >= 1 and sizes == [channels] * 3 + [3, 3] and all(isfinite(n) for row in rows for n in row)
