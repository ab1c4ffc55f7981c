"""Convert samples to images for a data set that only declares its shapes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor

from sddit.data.declared import DeclaredParams, no_images
from sddit.data.preview import Shown


def declared(params: DeclaredParams, *, split: Literal["train", "test"]) -> DeclaredSplit:
    """Return a split without images; both splits are equal."""
    return DeclaredSplit(params)


class DeclaredSplit:
    """A split without images, which can only convert samples to images."""

    def __init__(self, params: DeclaredParams) -> None:
        self.facts = params.facts()
        self._shown = Shown(params, self.facts)

    def __len__(self) -> int:
        raise no_images()

    def fetch(self, ids: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Raise SD-D340."""
        raise no_images()

    def to_images(self, x: Tensor) -> Tensor:
        """Return uint8 [n, 3, H, W]: pixels of 1 or 3 channels, otherwise three channels of the latents."""
        return self._shown.pixels(x) if self.facts.image[0] in (1, 3) else self._shown.latents(x)
