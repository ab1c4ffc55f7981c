"""Encode held-out images and decode them again, to see what the codec alone costs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from sddit.evaluation.scores import LabelledImages
from sddit.generation import Convert
from sddit.interfaces import Dataset
from sddit.recipes.recipe import Recipe


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
        for first in range(0, len(rows), size):
            x, labels = self.latents.fetch(rows[first : first + size])
            yield self.decode(x), labels
