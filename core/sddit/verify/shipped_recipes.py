"""Test the shipped recipes for leaks, with stand-ins for data that are missing."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from sddit.diffusion.draws import generator
from sddit.errors import SdditError
from sddit.interfaces import CheckContext, CheckSkipped, DataFacts, Measurement
from sddit.recipes import search
from sddit.recipes.merge import load
from sddit.recipes.recipe import Recipe
from sddit.recipes.resolve import resolve
from sddit.verify.leak_detector import leak

BASE_FOLDER = "base"
"""Folder of the recipes that others extend."""
EXTERNAL_CODES = ("SD-D", "SD-C", "SD-R109", "SD-R140")
"""Prefixes of the codes of data, codecs and start weights that are missing, or whose place the user has yet to set."""
MAX_PARAMETERS = 5_000_000
"""Size of a network above which only `--full` tests its recipe."""
DECLARED_DATA = (
    "dataset.name=sddit/declared",
    "dataset.image=[4, 16, 16]",
    "dataset.classes=10",
    "dataset.label_drop=0.1",
    "evaluate.features=[]",
)
"""Overrides that replace the data with small latents, whose values are noise."""
NARROW_NETWORK = ("backbone.size=", "backbone.depth=12", "backbone.width=32", "backbone.heads=4")
"""Overrides that reduce the width. The depth suffices for the decoders and skips of the shipped recipes."""
FROM_FILES = ("start", "snapshot", "codec")
"""Tables of weights that are not shipped: the runs that a second stage uses, and the decoder of latents."""


class NoiseImages:
    """A few images of noise in the shape that a data set declares."""

    def __init__(self, facts: DataFacts) -> None:
        self.facts = facts

    def __len__(self) -> int:
        return 4

    def fetch(self, ids: Sequence[int]) -> tuple[Tensor, Tensor]:
        chosen = torch.as_tensor(ids, dtype=torch.int64)
        images = torch.randn((len(self), *self.facts.image), generator=generator(0, "imagined"))
        return images[chosen], chosen % len(self.facts.class_names)

    def to_images(self, x: Tensor) -> Tensor:
        raise NotImplementedError("noise is not shown")


def leaks(context: CheckContext) -> Iterator[Measurement]:
    """Test the shipped recipes for leaks: those with a small network whose data are available.

    With `full` also all others, with a narrow network of the same structure and images of noise.
    """
    folder, skipped = search.shipped(), []
    for path in sorted(path for path in folder.rglob("*.toml") if path.parent.name != BASE_FOLDER):
        recipe = available_recipe(path)
        if recipe is not None:
            yield from leak(recipe, context)
        elif context.full:
            narrow = narrow_recipe(path)
            yield from leak(narrow, context, images=NoiseImages(narrow.facts))
        else:
            skipped.append(path.relative_to(folder).with_suffix("").as_posix())
    if skipped:
        raise CheckSkipped(
            f"{len(skipped)} recipes are large, or their data or start weights are missing, such as {skipped[0]}: "
            "--full tests them with narrow networks and images of noise"
        )


def available_recipe(path: Path) -> Recipe | None:
    """Return a recipe unchanged; None if its data or start weights are missing or its network is large."""
    try:
        recipe = resolve(path)
    except SdditError as refusal:
        if not any(problem.code.startswith(EXTERNAL_CODES) for problem in refusal.problems):
            raise
        return None
    params, shapes = recipe.backbone.params, recipe.shapes
    cost = params.cost(shapes, num_kept=math.prod(params.grid(shapes)))
    return recipe if cost is not None and 0 < cost.parameters < MAX_PARAMETERS else None


def narrow_recipe(path: Path) -> Recipe:
    """Return a recipe with other data, a narrow network and random start weights, but its own losses and views."""
    tables = load(path).tables
    removed = [f"{table}=false" for table in FROM_FILES if table in tables]
    recipe = resolve(path, (*DECLARED_DATA, *NARROW_NETWORK, *removed))
    return replace(recipe, name=f"{recipe.name}, narrow and on noise")
