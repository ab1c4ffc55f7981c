"""Declare the facts of a data set without images, for models that were trained elsewhere. No torch."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from hashlib import sha256
from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from sddit.data.codec_record import is_colour_map_of
from sddit.data.scaling import refuse_constant
from sddit.data.undecoded import is_latent_data, looks_like_pixels
from sddit.errors import Problem, SdditError, error
from sddit.interfaces import ColourMap, DataFacts, DatasetParams, Params, RecipeView, Sha256

OF_LATENTS = ("latent_scale", "encoder", "latent_shift", "codec", "codec_sha256", "colours")
"""Facts that only latents have."""


def declared_table(data: Mapping[str, Any], dataset: Mapping[str, Any]) -> dict[str, Any]:
    """Return a table `[dataset]` that declares the facts of a data set that is not available.

    Args:
        data: its facts in a resolved recipe, see `recipe.facts_to_json`.
        dataset: its table `[dataset]`.
    """
    names = tuple(data["class_names"])
    classes = {"classes": len(names)} if names == numbers_as_names(len(names)) else {"class_names": list(names)}
    kept = {key: dataset[key] for key in ("label_drop", "normalize") if key in dataset}
    if is_latent_data(data, dataset):
        known = {key: data[key] for key in OF_LATENTS if data.get(key)}
        kept |= {**({"latents": True} if looks_like_pixels(data["image"]) else {}), **known}
    return {
        "name": "sddit/declared",
        "image": list(data["image"]),
        **classes,
        "mean": list(data["mean"]),
        "std": list(data["std"]),
        "train_images": data["train_size"],
        **kept,
    }


def numbers_as_names(count: int) -> tuple[str, ...]:
    """Return numbers as names of unnamed classes."""
    return tuple(map(str, range(count)))


def no_images(where: str = "dataset") -> SdditError:
    """Return the error SD-D340: a declared data set cannot be trained on or scored against."""
    return error(
        "SD-D340",
        "this data set is declared: it holds no images to train on or to score against",
        where=where,
        expect="a data set with images",
    )


Size = Annotated[int, Field(ge=1, le=65536)]
Spread = Annotated[float, Field(ge=0)]
Row = Annotated[tuple[float, ...], Field(strict=False)]
LATER: dict[str, Any] = {"omit_default": True}
"""Marks a key that later versions added: at its default it changes no run id."""


class ColourParams(Params):
    """A linear map from latents, as their encoder returns them, to colours in [0, 1]."""

    factor: int = Field(ge=1, le=65536, description="Pixels along each side of an image for one place of a latent.")
    weights: tuple[Row, ...] = Field(strict=False, description="A row of C numbers for each colour.")
    offset: tuple[float, ...] = Field(strict=False, description="A number for each colour.")
    r2: tuple[float, ...] = Field(strict=False, description="Explained fraction of the variance of each colour.")

    def map(self) -> ColourMap:
        """Return the map as facts hold it."""
        return ColourMap(self.factor, self.weights, self.offset, self.r2)


class DeclaredFacts(Params):
    """Facts of data that do not exist yet, for a plan."""

    classes: int = Field(ge=0, le=10**6, description="Number of classes; 0: unconditional.")
    images: int = Field(ge=1, le=10**12, description="How many images there are.")
    mean: tuple[float, ...] = Field(strict=False, description="Mean of each channel, scaled.")
    std: tuple[Spread, ...] = Field(strict=False, description="Standard deviation of each channel, scaled.")

    def facts_of(self, image: tuple[int, int, int], path: str, *, holdout: float, latents: bool) -> DataFacts:
        """Return the facts of what will be at `path`. Its fingerprint, and so the run id, will differ."""
        test = round(self.images * holdout)
        known = DeclaredParams(
            image=image,
            classes=self.classes,
            mean=self.mean,
            std=self.std,
            train_images=self.images - test,
            latents=latents,
        )
        return replace(known.facts(), test_size=test, source=f"declared, since {path} does not exist")

    def refuse_other_channels(self, channels: int) -> None:
        """Raise ValueError unless the moments are those of this number of channels."""
        if not len(self.mean) == len(self.std) == channels:
            given = f"mean has {len(self.mean)} numbers and std {len(self.std)}"
            raise ValueError(f"{given}, for {channels} channels")


class DeclaredLatents(DeclaredFacts):
    """Facts of a cache of latents, for its plan before it exists."""

    image: tuple[Size, Size, Size] = Field(strict=False, description="C, h and w of the latents.")

    @model_validator(mode="after")
    def _refuse_other_channels(self) -> Self:
        self.refuse_other_channels(self.image[0])
        return self

    def facts(self, path: str, *, holdout: float) -> DataFacts:
        """Return the facts of the cache that will be at `path`."""
        return self.facts_of(self.image, path, holdout=holdout, latents=True)


class DeclaredParams(DatasetParams):
    """Shapes without images, for models trained elsewhere: such a recipe can plan and sample, but not train."""

    image: tuple[Size, Size, Size] = Field(strict=False, description="C, H and W as the network sees them.")
    classes: int = Field(0, ge=0, le=10**6, description="Number of classes; 0: unconditional. Or give class_names.")
    class_names: tuple[str, ...] = Field((), strict=False, description="Names of the classes, by label.")
    mean: tuple[float, ...] = Field((), strict=False, description="Mean of each channel; not set: 0.")
    std: tuple[Spread, ...] = Field((), strict=False, description="Standard deviation of each channel; not set: 0.5.")
    train_images: int = Field(0, ge=0, le=10**12, description="How many images the model was trained on; 0: not known.")
    latents: bool | None = Field(
        None,
        description="Whether the values are latents of an encoder. Not set: unless there are 1 or 3 channels.",
        json_schema_extra=LATER,
    )
    latent_scale: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="The values are the encoder's latents times this. Not set: not known, so samples cannot be "
        "returned in the encoder's units.",
        json_schema_extra=LATER,
    )
    encoder: str = Field("", description="Name of that encoder.", json_schema_extra=LATER)
    latent_shift: float = Field(
        0.0, description="Number that was subtracted from the encoder's latents before.", json_schema_extra=LATER
    )
    codec: str = Field("", description="Qualified name of the codec that encoded them.", json_schema_extra=LATER)
    codec_sha256: Sha256 = Field("", description="Hash of the weights of that codec.", json_schema_extra=LATER)
    colours: ColourParams | None = Field(
        None, description="Linear map from latents to colours, for previews.", json_schema_extra=LATER
    )

    @model_validator(mode="after")
    def _refuse_contradictions(self) -> Self:
        for key, values in (("mean", self.mean), ("std", self.std)):
            if values and len(values) != self.image[0]:
                raise ValueError(f"{key} has {len(values)} numbers for {self.image[0]} channels")
        if self.class_names and self.classes not in (0, len(self.class_names)):
            raise ValueError(f"classes = {self.classes}, and class_names has {len(self.class_names)}")
        if self.latents is False and not looks_like_pixels(self.image):
            raise ValueError(f"latents = false, and images have 1 or 3 channels, not {self.image[0]}")
        if not self.is_latent and (given := [key for key in OF_LATENTS if getattr(self, key)]):
            raise ValueError(f"{' and '.join(given)} of latents: set latents = true")
        if self.colours and not is_colour_map_of(self.image[0], self.colours.map()):
            raise ValueError(f"colours does not map {self.image[0]} channels to three colours")
        return self

    @property
    def is_latent(self) -> bool:
        """Whether the values are latents."""
        return self.latents if self.latents is not None else not looks_like_pixels(self.image)

    @property
    def holds_images(self) -> bool:
        return False

    def facts(self) -> DataFacts:
        """Return the declared facts. Default per channel: mean 0 and standard deviation 0.5."""
        channels, height, width = self.image
        names = self.class_names or numbers_as_names(self.classes)
        mean, std = self.mean or (0.0,) * channels, self.std or (0.5,) * channels
        identity: list[Any] = [self.image, names, mean, std, self.train_images]
        if self.is_latent and (looks_like_pixels(self.image) or self.latent_scale or self.encoder):
            identity.append(["latents", self.latent_scale, self.encoder])
        if self.latent_shift:
            identity.append(["shift", self.latent_shift])
        size = f", trained on {self.train_images:,} images" if self.train_images else ""
        facts = DataFacts(
            image=self.image,
            class_names=names,
            train_size=self.train_images,
            test_size=0,
            fingerprint=sha256(json.dumps(identity).encode()).hexdigest(),
            mean=mean,
            std=std,
            source=f"declared, no images: {channels}x{height}x{width}{size}",
            is_latent=self.is_latent,
            latent_scale=self.latent_scale,
            encoder=self.encoder,
            latent_shift=self.latent_shift,
            codec=self.codec,
            codec_sha256=self.codec_sha256,
            colours=self.colours.map() if self.colours else None,
        )
        refuse_constant(self, facts)
        return facts

    def check(self, recipe: RecipeView) -> Iterable[Problem]:
        """Yield a problem if the recipe asks for scores, which need images."""
        return no_images("evaluate.features").problems if recipe.features else ()

    def idle(self, recipe: RecipeView) -> Iterable[str]:
        return ("flip", "balanced")
