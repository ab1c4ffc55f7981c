"""Write the images of a run folder: grids during training, the final grid, and all samples as arrays."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from sddit.evaluation.grids import grid, png
from sddit.generation import Request, balanced, generate_images, of_classes
from sddit.recipes.recipe import Recipe
from sddit.storage.run_folder import RunFolder
from sddit.training.session import Session

UNCONDITIONAL = 64  # images of a grid without classes
MAX_CLASSES = 16  # rows of a grid; with more classes, the first ones are shown


def grid_request(recipe: Recipe, classes: Sequence[int] = ()) -> tuple[Request, int, list[str]]:
    """Select the images of a grid, its columns and row names: one row per class, or a square without classes."""
    names = recipe.facts.class_names
    if not names:
        return balanced(0, UNCONDITIONAL, recipe.seed), 8, []
    shown = list(classes) or list(range(min(len(names), MAX_CLASSES)))
    columns = recipe.evaluate.per_class
    return of_classes(shown, columns, len(names), recipe.seed), columns, [names[label] for label in shown]


def write_preview(session: Session, folder: RunFolder) -> None:
    """`samples/step-000123.png`: the same seeds at every preview, with the weights that the final samples use."""
    recipe = session.recipe
    request, columns, names = grid_request(recipe)
    images = generate_images(
        session.weights(recipe.evaluate.weights),
        session.schedule,
        recipe,
        session.dataset,
        request,
        device=session.device,
        world=session.world,
    )
    if session.world.main:
        folder.write_bytes(preview_name(session.step), png(grid(images, columns, names)))


def preview_name(step: int) -> str:
    return f"samples/step-{step:06d}.png"


def previews(folder: Path) -> list[tuple[int, bytes]]:
    """Return the grids drawn while training, (step, PNG), in order."""
    found = sorted((folder / "samples").glob("step-*.png"))
    return [(int(path.stem.removeprefix("step-")), path.read_bytes()) for path in found]


def write_samples(folder: RunFolder, name: str, images: Tensor, request: Request) -> None:
    """Write all samples: `arr_0` uint8 [n, H, W, 3] as the ADM evaluator reads them, `arr_1` labels, `ids`, `seed`."""
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer,
        arr_0=images.permute(0, 2, 3, 1).contiguous().numpy(),
        arr_1=np.asarray(request.labels),
        ids=np.asarray(request.ids),
        seed=np.asarray(request.seed),
    )
    folder.write_bytes(name, buffer.getvalue())
