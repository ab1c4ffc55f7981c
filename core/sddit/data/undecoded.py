"""State what latents without a decoder are, and refuse to treat them as images. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sddit.errors import Problem, SdditError
from sddit.storage.run_folder import LATENTS, RECIPE, read_json

CAPTION = "three latent channels, not an image"
REFUSED = "SD-T912"
NO_SCORES = "the samples are latents, which nothing here decodes"
KEPT = f"{LATENTS} of a run holds its samples in the units of the encoder: decode them with its decoder"


def scores_of_latents(where: str, got: str, fix: str = KEPT) -> Problem:
    """Return the problem SD-T912: scores of images are asked for, and the samples are latents."""
    what = "latents without a decoder are not images: a score of their channels means nothing"
    return Problem(REFUSED, what, where, got, "a data set of images", fix)


def is_latent_data(data: Mapping[str, Any], dataset: Mapping[str, Any]) -> bool:
    """Return whether the tables `data` and `dataset` of a resolved recipe describe latents.

    Recipes of earlier versions do not state it: a posterior is of latents, and pixels have one channel or three.
    """
    return bool(data.get("is_latent", "posterior" in dataset or not looks_like_pixels(data["image"])))


def looks_like_pixels(shape: Sequence[int]) -> bool:
    """Return whether C, H, W may be a shape of pixels: one channel, or three."""
    return shape[0] in (1, 3)


def are_undecoded(recipe: Mapping[str, Any]) -> bool:
    """Return whether the samples of a resolved recipe, as JSON, are latents without a decoder."""
    data, dataset = recipe.get("data"), recipe.get("dataset")
    if not isinstance(data, Mapping) or not isinstance(dataset, Mapping) or not data.get("image"):
        return False
    return is_latent_data(data, dataset) and not data.get("decoder")


def samples_are_undecoded(run: Path) -> bool:
    """Return whether the samples of a run folder are latents without a decoder; False if its recipe is unreadable."""
    try:
        return are_undecoded(read_json(run / RECIPE))
    except (SdditError, TypeError, LookupError):
        return False


def refuse_latents(run: Path, asked: str) -> None:
    """Raise SD-T912 if the samples of a run folder are latents without a decoder. `asked`: what looks at images."""
    if samples_are_undecoded(run):
        raise SdditError(scores_of_latents(str(run), asked, f"{KEPT}. --probe works on latents"))
