"""Stand in for a data set that only declares its shapes: no images, only what is needed to look at generated ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor

from sddit.data.declared import DeclaredParams, no_images
from sddit.data.preview import Shown


def declared(params: DeclaredParams, *, split: Literal["train", "test"]) -> DeclaredSplit:
    """Facts without images; both splits are the same."""
    return DeclaredSplit(params)


class DeclaredSplit:
    """No images at all, only what is needed to look at generated ones."""

    def __init__(self, params: DeclaredParams) -> None:
        self.facts = params.facts()
        self._shown = Shown(params, self.facts)

    def __len__(self) -> int:
        raise no_images()

    def fetch(self, ids: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Always refused."""
        raise no_images()

    def to_images(self, x: Tensor) -> Tensor:
        """Pixels where there are 1 or 3 channels, else three channels of the latents; uint8 [n, 3, H, W]."""
        return self._shown.pixels(x) if self.facts.image[0] in (1, 3) else self._shown.latents(x)
