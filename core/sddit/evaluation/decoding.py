"""Convert samples to images: pixels by their data set, latents by a codec."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import cast

import torch
from torch import Tensor

from sddit.data.preview import encoder_units
from sddit.evaluation.scores import LabelledImages
from sddit.generation import Convert
from sddit.interfaces import Codec, Dataset
from sddit.recipes.recipe import Recipe


def image_converter(recipe: Recipe, dataset: Dataset, device: torch.device) -> Convert:
    """Return the conversion of samples x [n, C, H, W] in network space to images, uint8 [n, 3, H, W].

    Latents are decoded by the codec of the recipe. Without one, three channels are shown.
    """
    return dataset.to_images if recipe.codec is None else Decoder(recipe, device)


class Decoder:
    """Decode latents in network space with the codec of a recipe, which is built when it is first used."""

    def __init__(self, recipe: Recipe, device: torch.device) -> None:
        self._recipe, self._device = recipe, device

    def __call__(self, x: Tensor) -> Tensor:
        """Return images, uint8 [n, 3, H, W], of samples x [n, C, h, w] in network space."""
        return self._codec.decode(encoder_units(x, self._recipe.dataset.params, self._recipe.facts).float())

    @cached_property
    def _codec(self) -> Codec:
        assert self._recipe.codec is not None
        return cast(Codec, self._recipe.codec.build(device=self._device, facts=self._recipe.facts))


@dataclass(frozen=True)
class Reconstructions:
    """Held-out images, encoded and decoded again: what a perfect model of the latents could reach."""

    recipe: Recipe
    decode: Convert
    latents: Dataset = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "latents", self.recipe.dataset.build(split="test"))

    def batches(self, images: int) -> Iterator[LabelledImages]:
        """Yield the reconstructions of the `images` held-out images, in their order."""
        rows = range(0, len(self.latents), max(1, len(self.latents) // max(images, 1)))  # without mirror images
        size = self.recipe.evaluate.batch
        for start in rows[::size]:
            part = rows[(start - rows.start) // rows.step :][:size]
            x, labels = self.latents.fetch(list(part))
            yield self.decode(x), labels
