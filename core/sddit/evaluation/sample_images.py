"""Write and read the images of a run folder: grids during training, and all samples as arrays."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sddit.data.archives import StoredArray, write_arrays
from sddit.data.undecoded import refuse_latents
from sddit.errors import error
from sddit.evaluation.grids import grid, png
from sddit.generation import (
    IMAGES,
    LATENTS,
    Convert,
    Request,
    balanced,
    caption_of,
    joined,
    latents_of,
    of_classes,
    sample_session,
)
from sddit.progress import Progress
from sddit.recipes.recipe import Recipe
from sddit.storage.run_folder import LATENTS as LATENTS_FILE
from sddit.storage.run_folder import SAMPLES, RunFolder, unreadable_error
from sddit.storage.run_result import refuse_other_result
from sddit.storage.sample_parts import SampleParts
from sddit.storage.tensors import write_tensors
from sddit.training.session import Session

PARTS = "samples/parts"  # while they are generated
SAMPLE_AGAIN = "delete it and report.html, then run the recipe: it samples again"
RGB = 3
ABOUT = "sddit"  # the entry of the metadata of latents, JSON
UNCONDITIONAL = 64  # images of a grid without classes
MAX_CLASSES = 16  # rows of a grid; with more classes, the first ones are shown


def grid_request(recipe: Recipe) -> tuple[Request, int, Sequence[str]]:
    """Select the images of a grid, its columns and row names: one row per class, or a square without classes."""
    names = recipe.facts.class_names
    if not names:
        return balanced(0, UNCONDITIONAL, recipe.seed), 8, []
    shown, columns = names[:MAX_CLASSES], recipe.evaluate.per_class
    return of_classes(range(len(shown)), columns, len(names), recipe.seed), columns, shown


def write_preview(session: Session, folder: RunFolder, to_images: Convert) -> None:
    """Write `samples/step-000123.png`: the same seeds at every preview, and the weights of the final samples."""
    request, columns, names = grid_request(session.recipe)
    images = joined(sample_session(session, request, {IMAGES: to_images}), IMAGES)
    if session.world.main:
        sheet = grid(images, columns, names, caption=caption_of(session.recipe))
        folder.write_bytes(preview_name(session.step), png(sheet))


def preview_name(step: int) -> str:
    return f"samples/step-{step:06d}.png"


def previews(folder: Path) -> list[tuple[int, bytes]]:
    """Return the previews of a run folder, (step, PNG), in order."""
    found = sorted((folder / "samples").glob("step-*.png"))
    return [(int(path.stem.removeprefix("step-")), path.read_bytes()) for path in found]


def write_samples(
    session: Session, folder: RunFolder, request: Request, to_images: Convert, progress: Progress
) -> SampleParts | None:
    """Generate the samples of a run and write those that are images to `SAMPLES`, those that are latents to `LATENTS`.

    They are generated in parts, so that a kill loses one part, and 50,000 images need not fit in memory. Returns the
    parts on the main rank, to be removed when the run is finished.
    """
    world, recipe = session.world, session.recipe
    parts = SampleParts(folder.path / PARTS, parts_identity(session, request)) if world.main else None
    done = world.from_main(lambda: parts.count if parts else 0)
    for _, results in sample_session(session, request, kept_results(recipe, to_images), progress, done):
        if parts:
            parts.append(results)
    if parts:
        numbers = Numbers(request.labels, request.ids, [request.seed] * len(request.ids))
        for name, write in sample_files(parts, numbers, recipe).items():
            folder.write_file({IMAGES: SAMPLES, LATENTS: LATENTS_FILE}[name], write)
        if broken := sum(int((~x.isfinite()).flatten(1).any(1).sum()) for x in parts.read(LATENTS)):
            progress.warn(f"{broken:,} of {parts.count:,} sampled latents hold NaN or infinity")
    return parts


def parts_identity(session: Session, request: Request) -> dict[str, Any]:
    """Return what the samples of a run depend on."""
    recipe = session.recipe
    identity = {"run_id": recipe.run_id, "step": session.step, "weights": recipe.evaluate.weights}
    return {**identity, "request_sha256": request.digest()}


def kept_results(recipe: Recipe, to_images: Convert) -> dict[str, Convert]:
    """Return what is kept of each sample: its image, its latent, or both."""
    images = {IMAGES: to_images} if recipe.facts.gives_images else {}
    return images | ({LATENTS: latents_of(recipe)} if recipe.facts.is_latent else {})


class Numbers(NamedTuple):
    """The number of each sample: its class, its image number and its seed, [n] each."""

    labels: Sequence[int]
    ids: Sequence[int]
    seeds: Sequence[int]


def sample_files(parts: SampleParts, numbers: Numbers, recipe: Recipe) -> dict[str, Callable[[BinaryIO], None]]:
    """Return the functions that write the samples of each kind that is kept, to a file.

    Images: an npz with `arr_0` uint8 [n, H, W, 3] as the ADM evaluator reads them, `arr_1` labels, `ids` and `seeds`.
    Latents: a safetensors file, see `describe_latents`.
    """
    whole = {name: np.asarray(values, dtype=np.int64) for name, values in numbers._asdict().items()}
    writers: dict[str, Callable[[BinaryIO], None]] = {}
    if IMAGES in parts.names:
        count, channels, height, width = parts.shape(IMAGES)
        rows = (part.permute(0, 2, 3, 1).numpy() for part in parts.read(IMAGES))
        arrays = {"arr_1": whole["labels"], "ids": whole["ids"], "seeds": whole["seeds"]}
        images = {"arr_0": (np.uint8, (count, height, width, channels), rows)}
        writers[IMAGES] = lambda file: write_arrays(
            file, images | {name: (values.dtype, values.shape, [values]) for name, values in arrays.items()}
        )
    if LATENTS in parts.names:
        metadata = {ABOUT: json.dumps(describe_latents(recipe))}  # safetensors writes several entries in random order
        integers = {name: (torch.int64, values.shape, [torch.from_numpy(values)]) for name, values in whole.items()}
        latents = (torch.float16, parts.shape(LATENTS), parts.read(LATENTS))
        writers[LATENTS] = lambda file: write_tensors(file, {**integers, latents_name(recipe): latents}, metadata)
    return writers


def latents_name(recipe: Recipe) -> str:
    """Return `latents` in the units of the encoder, `scaled_latents` if the scale is not known."""
    return "latents" if recipe.facts.latent_scale is not None else "scaled_latents"


def describe_latents(recipe: Recipe) -> dict[str, Any]:
    """Return what a file of sampled latents contains, for its metadata."""
    facts, name = recipe.facts, latents_name(recipe)
    known = facts.latent_scale is not None
    units = "in the units of the encoder" if known else "times a scale that is not known: divide by that of the encoder"
    return {
        "what": f"latents that a diffusion model sampled, {units}, for the decoder of the encoder",
        "layout": f"{name} float16 [n, C, H, W]; labels, ids (image numbers) and seeds int64 [n]",
        "encoder": facts.encoder or None,
        "scale": facts.latent_scale,
        "scaling": "the network samples latents times scale; this is undone" if known else "not undone",
        "normalize": recipe.dataset.params.normalize,
        "class_names": facts.class_names,
        "null_label": facts.num_classes,
    }


def kept_samples(folder: Path) -> StoredArray:
    """Return the samples of a finished run, uint8 [n, H, W, 3].

    Raises SD-T930 if there are none yet, SD-T912 for a run on latents, SD-F704 for an unreadable file.
    """
    refuse_latents(folder, "the samples as images")
    path = folder / SAMPLES
    if not path.is_file():
        fix = "run its recipe to the end"
        raise error("SD-T930", "this run has kept no samples yet", where=str(folder), expect=SAMPLES, fix=fix)
    refuse_other_result(folder, SAMPLES, SAMPLE_AGAIN)
    with unreadable_samples(path):
        images = StoredArray.find(path, "arr_0")
    if images is None or images.dtype != np.uint8 or len(images.shape) != 4 or images.shape[3] != RGB:
        raise unreadable_error(path, "no images uint8 [n, H, W, 3] in arr_0", SAMPLE_AGAIN)
    return images


def batches_of(images: StoredArray, size: int) -> Iterator[Tensor]:
    """Yield samples as uint8 [b, 3, H, W]. Raises SD-F704 for an unreadable file."""
    with unreadable_samples(images.path):
        for batch in images.batches(size):
            yield torch.from_numpy(batch).permute(0, 3, 1, 2).contiguous()  # sums depend on the order in memory


@contextmanager
def unreadable_samples(path: Path) -> Iterator[None]:
    """Turn the exceptions of reading samples into SD-F704."""
    try:
        yield
    except (OSError, ValueError) as fault:
        raise unreadable_error(path, str(fault)[:160], SAMPLE_AGAIN) from fault
