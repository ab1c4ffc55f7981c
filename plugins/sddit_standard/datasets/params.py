"""Define settings of the built-in data sets. Torch-free."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, Self

from pydantic import Field, model_validator

from sddit.data.declared import DeclaredFacts, DeclaredLatents
from sddit.errors import Problem
from sddit.interfaces import PLACE, DataFacts, DatasetParams, EncodedImages, RecipeView

if TYPE_CHECKING:
    from sddit_standard.datasets.image_sources import ImageSource


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


class EmojiParams(ImageParams):
    """Noto emoji in colour: eight categories of Unicode, and flags if asked for."""

    size: Literal[32, 64] = Field(
        32, description="Height and width in pixels. 64 as stored; 32 is the mean of each 2x2 pixels of it."
    )
    flags: bool = Field(False, description="Add the class of flags, which is the second largest.")
    skin_variants: bool = Field(
        False, description="Add the variants in five skin tones, each in the split of its emoji."
    )

    def facts(self) -> DataFacts:
        from sddit_standard.datasets.embedded import without_labels
        from sddit_standard.datasets.emoji import emoji_facts

        facts = emoji_facts(size=self.size, flags=self.flags, skin_variants=self.skin_variants)
        return facts if self.labels else without_labels(facts)


class ImageFilesParams(ImageParams):
    """The keys of every data set of the user's own images."""

    path: str = Field(min_length=1, description="Where the images are, relative to the recipe.")
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
        description="Look for changed files in all bytes at each start. false: in all bytes of at most 256 MiB of "
        "images, else in sizes, times and the bytes of 1,000 images.",
        json_schema_extra={"free": True},
    )

    kind: ClassVar[str] = ""  # of source, as `image_sources.source_kind` names it

    @classmethod
    def reads(cls, source: Path) -> bool:
        from sddit_standard.datasets.image_sources import source_kind

        return source_kind(source) == cls.kind

    def source(self) -> ImageSource:
        """Return the images, listed again at each call. Raises SdditError for missing or unusable data."""
        raise NotImplementedError

    def facts(self) -> DataFacts:
        from sddit.data.scaling import refuse_constant
        from sddit_standard.datasets.image_facts import image_facts

        facts = image_facts(self.source(), self)
        refuse_constant(self, facts)
        return facts


class FolderParams(ImageFilesParams):
    """Your own images: one folder with a sub-folder for each class."""

    kind: ClassVar[str] = "folder"
    path: str = Field(
        min_length=1,
        description="The folder, relative to the recipe. Its sub-folders, sorted by name, are the classes.",
        json_schema_extra=PLACE,
    )
    declared: DeclaredFacts | None = Field(
        None,
        description="Facts of the images, with which sddit-run -n plans while there is nothing at path.",
        json_schema_extra={"free": True, "omit_default": True},
    )

    @model_validator(mode="after")
    def _refuse_other_channels(self) -> Self:
        if self.declared is not None:
            self.declared.refuse_other_channels(self.channels)
        return self

    def declared_facts(self) -> DataFacts | None:
        if self.declared is None or Path(self.path).exists():
            return None
        image = (self.channels, self.size, self.size)
        return self.declared.facts_of(image, self.path, holdout=self.holdout, latents=False)

    def source(self) -> ImageSource:
        from sddit_standard.datasets.folder import FolderSource

        return FolderSource(self)


class NamedClassesParams(ImageFilesParams):
    """The key of sources whose labels are numbers."""

    class_names: str = Field(
        "",
        description="A text file with the name of each class, one on each line, by class number. Not set: the names "
        "that the data set holds, or numbers.",
        json_schema_extra={**PLACE, "omit_default": True},
    )

    def idle(self, recipe: RecipeView) -> Iterable[str]:
        return () if self.labels or not self.class_names else ("class_names",)


class ZipParams(NamedClassesParams):
    """Your own images in one .zip archive, as EDM2 packs them, or in class folders."""

    kind: ClassVar[str] = "zip"
    path: str = Field(
        min_length=1,
        description="The archive, relative to the recipe. Labels are those of its dataset.json; without that file, its "
        "folders are the classes.",
        json_schema_extra=PLACE,
    )

    def source(self) -> ImageSource:
        from sddit_standard.datasets.zip_source import ZipSource

        return ZipSource(self)


class WebdatasetParams(NamedClassesParams):
    """Your own images in WebDataset's .tar shards: KEY.jpg and its label in KEY.cls or KEY.json."""

    kind: ClassVar[str] = "webdataset"
    path: str = Field(
        min_length=1,
        description="The folder of the .tar files, one such file, or a pattern such as SHARDS/train-*.tar, relative to "
        "the recipe.",
        json_schema_extra=PLACE,
    )

    def source(self) -> ImageSource:
        from sddit_standard.datasets.tar_shards import WebdatasetSource

        return WebdatasetSource(self)


class HfParams(ImageFilesParams):
    """Your own images in a data set that Hugging Face's `datasets` saved on disk."""

    kind: ClassVar[str] = "hf"
    path: str = Field(
        min_length=1,
        description="The folder that Dataset.save_to_disk wrote, relative to the recipe; of a DatasetDict, one split.",
        json_schema_extra=PLACE,
    )
    image_column: str = Field("image", min_length=1, description="Column of the images.")
    label_column: str = Field("label", min_length=1, description="Column of the classes.")

    def source(self) -> ImageSource:
        from sddit_standard.datasets.saved_dataset import SavedSource

        return SavedSource(self)

    def idle(self, recipe: RecipeView) -> Iterable[str]:
        return () if self.labels else ("label_column",)


class LatentsParams(ImageParams):
    """Cached latents: the moments of an encoder's posterior, one for each image."""

    path: str = Field(
        min_length=1,
        description="The folder with latents.json and its shards, relative to the recipe.",
        json_schema_extra=PLACE,
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
        0.0,
        ge=0,
        le=0.9,
        description="Fraction of latents in the test split; 0: train on all of them. A cache that states the split of "
        "its images keeps that.",
    )
    images: str = Field(
        "",
        description="Path of the images that were encoded, to which scores compare decoded samples. Not set: where "
        "the cache says they are.",
        json_schema_extra={**PLACE, "omit_default": True},
    )
    declared: DeclaredLatents | None = Field(
        None,
        description="Facts of the cache, with which sddit-run -n plans while there is nothing at path.",
        json_schema_extra={"free": True, "omit_default": True},
    )

    def idle(self, recipe: RecipeView) -> Iterable[str]:
        return ("holdout",) if self.encoded_images() else ()

    def declared_facts(self) -> DataFacts | None:
        if self.declared is None or Path(self.path).exists():
            return None
        return self.declared.facts(self.path, holdout=self.holdout)

    def encoded_images(self) -> EncodedImages | None:
        from sddit_standard.datasets.latent_facts import encoded_images

        if self.declared_facts() is not None:
            return None

        return encoded_images(self.path, self.images)

    def facts(self) -> DataFacts:
        from sddit.data.scaling import refuse_constant
        from sddit_standard.datasets.latent_facts import latents_facts

        facts = latents_facts(self.path, posterior=self.posterior, holdout=self.holdout, labels=self.labels)
        refuse_constant(self, facts)
        return facts

    def check(self, recipe: RecipeView) -> Iterable[Problem]:
        """Latents that are mirrored already are not mirrored again."""
        from sddit.data.latents import read_index

        if self.flip and self.declared_facts() is None and (stored := read_index(self.path).index.flip) != "none":
            yield Problem(
                "SD-R108",
                "these latents were mirrored before they were encoded",
                where="dataset.flip",
                got=f"flip = true, and the cache says flip: {stored}",
                fix="dataset.flip = false",
            )
