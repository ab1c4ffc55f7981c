"""Write and read the images of a run folder: grids during training, and all samples as arrays."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from sddit.data.archives import load_arrays
from sddit.errors import error
from sddit.evaluation.grids import grid, png
from sddit.generation import Request, balanced, of_classes, sample_session
from sddit.recipes.recipe import Recipe
from sddit.storage.run_folder import RunFolder, unreadable_error
from sddit.training.session import Session

SAMPLES = "samples/samples.npz"
UNCONDITIONAL = 64  # images of a grid without classes
MAX_CLASSES = 16  # rows of a grid; with more classes, the first ones are shown


def grid_request(recipe: Recipe) -> tuple[Request, int, Sequence[str]]:
    """Select the images of a grid, its columns and row names: one row per class, or a square without classes."""
    names = recipe.facts.class_names
    if not names:
        return balanced(0, UNCONDITIONAL, recipe.seed), 8, []
    shown, columns = names[:MAX_CLASSES], recipe.evaluate.per_class
    return of_classes(range(len(shown)), columns, len(names), recipe.seed), columns, shown


def write_preview(session: Session, folder: RunFolder) -> None:
    """Write `samples/step-000123.png`: the same seeds at every preview, and the weights of the final samples."""
    request, columns, names = grid_request(session.recipe)
    images = sample_session(session, request)
    if session.world.main:
        folder.write_bytes(preview_name(session.step), png(grid(images, columns, names)))


def preview_name(step: int) -> str:
    return f"samples/step-{step:06d}.png"


def previews(folder: Path) -> list[tuple[int, bytes]]:
    """Return the previews of a run folder, (step, PNG), in order."""
    found = sorted((folder / "samples").glob("step-*.png"))
    return [(int(path.stem.removeprefix("step-")), path.read_bytes()) for path in found]


def write_samples(folder: RunFolder, images: Tensor, request: Request) -> None:
    """Write all samples: `arr_0` uint8 [n, H, W, 3] as the ADM evaluator reads them, `arr_1` labels, `ids`, `seed`."""
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer,
        arr_0=images.permute(0, 2, 3, 1).contiguous().numpy(),
        arr_1=np.asarray(request.labels),
        ids=np.asarray(request.ids),
        seed=np.asarray(request.seed),
    )
    folder.write_bytes(SAMPLES, buffer.getvalue())


def kept_samples(folder: Path) -> NDArray[np.uint8]:
    """Return the samples of a finished run, [n, H, W, 3]. Raises SD-T930 if there are none yet."""
    path = folder / SAMPLES
    if not path.is_file():
        fix = "run its recipe to the end"
        raise error("SD-T930", "this run has kept no samples yet", where=str(folder), expect=SAMPLES, fix=fix)
    try:
        images: NDArray[np.uint8] = load_arrays(path, ["arr_0"])["arr_0"]
    except (OSError, ValueError, KeyError) as fault:
        fix = "delete it and report.html, then run the recipe: it samples again"
        raise unreadable_error(path, str(fault)[:160], fix) from fault
    return images
