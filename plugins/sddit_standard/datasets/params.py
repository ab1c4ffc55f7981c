"""Define settings of the built-in data sets. Torch-free."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from pydantic import Field

from sddit.errors import Problem
from sddit.interfaces import (
    DataFacts,
    DatasetParams,
    RecipeView,
)


class ImageParams(DatasetParams):
    """The key of every data set of images."""

    labels: bool = Field(True, description="Learn the classes; false: unconditional, with no class at all.")


class DigitsParams(ImageParams):
    """Handwritten digits, 8x8 grey: seconds are enough to learn something."""

    def facts(self) -> DataFacts:
        from sddit_standard.datasets.embedded import embedded_facts, without_labels

        facts = embedded_facts("digits")
        return facts if self.labels else without_labels(facts)


class FashionParams(ImageParams):
    """Fashion-MNIST, 28x28 grey: ten kinds of clothing."""

    source: str = Field(
        "embedded",
        min_length=1,
        description="embedded: the 12,000 images that are included; system: Debian's package "
        "dataset-fashion-mnist; else the "
        "folder with its four .gz files. Only this one is tried.",
        json_schema_extra={"path": True, "words": ["embedded", "system"]},
    )

    def facts(self) -> DataFacts:
        from sddit.data.scaling import refuse_constant
        from sddit_standard.datasets.embedded import without_labels
        from sddit_standard.datasets.fashion import fashion_facts

        facts = fashion_facts(self.source)
        refuse_constant(self, facts)
        return facts if self.labels else without_labels(facts)


class FolderParams(ImageParams):
    """Your own images: one folder with a sub-folder for each class."""

    path: str = Field(
        min_length=1,
        description="The folder, relative to the recipe. Its sub-folders, sorted by name, are the classes.",
        json_schema_extra={"path": True},
    )
    size: int = Field(32, ge=4, le=1024, description="Height and width in pixels; images are scaled and cut to it.")
    channels: Literal[1, 3] = Field(3, description="3: colour; 1: grey.")
    bits: int | None = Field(
        None,
        ge=1,
        le=16,
        description="Bits that the levels of grey files really have, such as 12 of a camera's 16-bit files; above 8 "
        "it concerns files of more than 8 bits only. Not set: all bits of a file.",
        json_schema_extra={"omit_default": True},
    )
    holdout: float = Field(
        0.1,
        ge=0,
        le=0.9,
        description="Fraction of images in the test split, chosen by a hash of each name, so that an image never "
        "changes its split.",
    )
    full_hash: bool = Field(
        False,
        description="Look for changed files in all bytes at each start. false: in all bytes of a folder up to 256 MiB, "
        "else in sizes, times and the bytes of 1,000 files.",
        json_schema_extra={"free": True},
    )

    @classmethod
    def reads(cls, source: Path) -> bool:
        return source.is_dir()

    def facts(self) -> DataFacts:
        from sddit.data.scaling import refuse_constant
        from sddit_standard.datasets.folder import folder_facts

        facts = folder_facts(self)
        refuse_constant(self, facts)
        return facts


class LatentsParams(ImageParams):
    """Cached latents: the moments of an encoder's posterior, one for each image."""

    path: str = Field(
        min_length=1,
        description="The folder with latents.json and its shards, relative to the recipe.",
        json_schema_extra={"path": True},
    )
    posterior: Literal["sample", "mean"] = Field(
        "sample", description="sample: drawn again each time an image is used; mean: always the mean of its posterior."
    )
    normalize: Literal["range", "standard"] = Field(
        "range",
        description="range: latents times the cache's scale; standard: shifted and scaled per channel to mean 0 "
        "and std 0.5 "
        "(EDM2, arXiv:2312.02696).",
    )
    holdout: float = Field(
        0.0, ge=0, le=0.9, description="Fraction of latents in the test split; 0: train on all of them."
    )

    def facts(self) -> DataFacts:
        from sddit.data.scaling import refuse_constant
        from sddit_standard.datasets.latent_facts import latents_facts

        facts = latents_facts(self.path, posterior=self.posterior, holdout=self.holdout, labels=self.labels)
        refuse_constant(self, facts)
        return facts

    def check(self, recipe: RecipeView) -> Iterable[Problem]:
        """Latents that are mirrored already are not mirrored again."""
        from sddit.data.latents import read_index

        if self.flip and (stored := read_index(self.path).index.flip) != "none":
            yield Problem(
                "SD-R108",
                "these latents were mirrored before they were encoded",
                where="dataset.flip",
                got=f"flip = true, and the cache says flip: {stored}",
                fix="dataset.flip = false",
            )
