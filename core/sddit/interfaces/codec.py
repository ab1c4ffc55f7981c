"""Define the contract of a codec: an autoencoder that maps images to latents and back."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self

from pydantic import Field

if TYPE_CHECKING:
    from torch import Tensor

from sddit.interfaces.facts import CodecFacts, DataFacts
from sddit.interfaces.params import Params, RecipeView
from sddit.interfaces.weight_files import Sha256, files_sha256

LATER: dict[str, Any] = {"omit_default": True}


class CodecParams(Params):
    """Settings of a codec, with the keys that every codec has."""

    scale: float | None = Field(
        None,
        gt=0,
        description="Factor of latents when a cache is made, after the shift; it brings their standard deviation near "
        "1. Not set: the codec's own.",
        json_schema_extra=LATER,
    )
    shift: float | None = Field(
        None,
        description="Number that is subtracted from latents when a cache is made, before the scale. Not set: the "
        "codec's own.",
        json_schema_extra=LATER,
    )
    encode: bool = Field(
        False,
        description="Train on the latents of the images of the data set. They are made at the first run, in the user's "
        "cache folder. dataset.flip = true then encodes the mirror image of each image, too.",
        json_schema_extra=LATER,
    )
    sha256: Sha256 = Field(
        "",
        description="Hash that the weights must have, filled in if not set: the sha256 of one file, or of the lines "
        "that sha256sum prints for several, sorted by name.",
    )

    def facts(self, data: DataFacts | None = None) -> CodecFacts:
        """Return shapes, pixel range, scale and shift, without loading weights.

        Args:
            data: the facts of the latents that it is to decode; None: it is to encode images.

        Raises:
            SdditError: for missing weights (SD-D351), and for data without what it decodes them with (SD-D350).
        """
        raise NotImplementedError

    def weight_files(self) -> tuple[Path, ...]:
        """Return the files of its weights, which exist if `facts` returns; none by default."""
        return ()

    def fingerprinted(self) -> Self:
        """Return these settings with the hash of the weights, if it is not set and the files exist.

        The hash is part of the run id. A key with the place of the files is marked `free`, so the place is not.
        """
        files = self.weight_files()
        if self.sha256 or not files or not all(file.is_file() for file in files):
            return self
        return self.model_copy(update={"sha256": files_sha256(files)})

    def idle(self, recipe: RecipeView) -> Iterable[str]:
        """Return keys without effect: a cache states its own scale and shift, and some codecs have no weights."""
        always = ("scale", "shift", *(["encode"] if self.encode else []))
        return always if self.weight_files() else (*always, "sha256")


class Codec(Protocol):
    """An autoencoder, built as `factory(params, *, device, facts=None)`, where `facts` are those of the data.

    A recipe decodes latents whose `DataFacts` are known; a codec that is to encode images is built without them.

    Latents are those of its own network: `facts.scale` and `facts.shift` are not applied. Images have three channels; a
    grey image is repeated to three, as `Dataset.to_images` does, and other shapes are refused (SD-D353).

    Both functions are deterministic. On one device, with one version of torch and one number of threads, the result for
    an image is the same in any batch, bit for bit; another device may differ by rounding. Results are on the CPU.
    """

    facts: CodecFacts

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation of the latents, float32 [B, C, h, w] each, of images uint8 [B, 3, H, W].

        The standard deviation is 0 for a codec without a posterior. `facts.encodes` is False: raises SD-D353.
        """

    def decode(self, latents: Tensor) -> Tensor:
        """Return images uint8 [B, 3, H, W] of latents, floats [B, C, h, w]."""
