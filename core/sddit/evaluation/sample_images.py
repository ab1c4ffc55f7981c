"""Write and read the images of a run folder: grids during training, and all samples as arrays."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sddit.data.archives import load_arrays
from sddit.data.undecoded import CAPTION, refuse_latents
from sddit.errors import error
from sddit.evaluation.grids import grid, png
from sddit.generation import Request, balanced, of_classes, sample_session
from sddit.recipes.recipe import Recipe
from sddit.storage.run_folder import LATENTS, SAMPLES, RunFolder, unreadable_error
from sddit.storage.run_result import refuse_other_result
from sddit.storage.tensors import pack
from sddit.training.session import Session

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


def write_preview(session: Session, folder: RunFolder) -> None:
    """Write `samples/step-000123.png`: the same seeds at every preview, and the weights of the final samples."""
    request, columns, names = grid_request(session.recipe)
    images = sample_session(session, request)
    if session.world.main:
        sheet = grid(images, columns, names, caption=caption_of(session.recipe))
        folder.write_bytes(preview_name(session.step), png(sheet))


def caption_of(recipe: Recipe) -> str:
    """Return what a grid of samples has to say under it: that channels of latents are not images."""
    return "" if recipe.facts.gives_images else CAPTION


def preview_name(step: int) -> str:
    return f"samples/step-{step:06d}.png"


def previews(folder: Path) -> list[tuple[int, bytes]]:
    """Return the previews of a run folder, (step, PNG), in order."""
    found = sorted((folder / "samples").glob("step-*.png"))
    return [(int(path.stem.removeprefix("step-")), path.read_bytes()) for path in found]


def write_samples(folder: RunFolder, images: Tensor, request: Request) -> None:
    """Write all samples: `arr_0` uint8 [n, H, W, 3] as the ADM evaluator reads them, `arr_1` labels, `ids`, `seed`."""
    pixels = images.permute(0, 2, 3, 1).contiguous().numpy()
    labels, ids, seed = np.asarray(request.labels), np.asarray(request.ids), np.asarray(request.seed)
    folder.write_bytes(SAMPLES, npz(arr_0=pixels, arr_1=labels, ids=ids, seed=seed))


def npz(**arrays: Any) -> bytes:
    """Return the bytes of a compressed npz file."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


def write_latents(folder: RunFolder, latents: Tensor, request: Request, recipe: Recipe) -> None:
    """Write all samples of a run on latents, see `pack_latents`."""
    labels, ids = torch.tensor(request.labels), torch.tensor(request.ids)
    numbers = {"labels": labels, "ids": ids, "seeds": torch.full_like(ids, request.seed)}
    folder.write_bytes(LATENTS, pack_latents(latents, numbers, recipe))


def pack_latents(latents: Tensor, numbers: Mapping[str, Tensor], recipe: Recipe) -> bytes:
    """Return a safetensors file of `kept_latents` [n, C, H, W], with what they are as metadata.

    They are `latents` in the units of the encoder, or `scaled_latents` if the scale is not known.

    Args:
        numbers: labels, ids and seeds, each [n] int64.
    """
    facts = recipe.facts
    known = facts.latent_scale is not None
    name = "latents" if known else "scaled_latents"
    units = "in the units of the encoder" if known else "times a scale that is not known: divide by that of the encoder"
    about = {
        "what": f"latents that a diffusion model sampled, {units}, for the decoder of the encoder",
        "layout": f"{name} float16 [n, C, H, W]; labels, ids (image numbers) and seeds int64 [n]",
        "encoder": facts.encoder or None,
        "scale": facts.latent_scale,
        "scaling": "the network samples latents times scale; this is undone" if known else "not undone",
        "normalize": recipe.dataset.params.normalize,
        "class_names": facts.class_names,
        "null_label": facts.num_classes,
    }
    metadata = {ABOUT: json.dumps(about)}  # safetensors writes several entries in random order
    return pack({name: latents.half(), **numbers}, metadata)


def kept_samples(folder: Path) -> NDArray[np.uint8]:
    """Return the samples of a finished run, [n, H, W, 3].

    Raises SD-T930 if there are none yet, SD-T912 for a run on latents.
    """
    refuse_latents(folder, "the samples as images")
    path = folder / SAMPLES
    if not path.is_file():
        fix = "run its recipe to the end"
        raise error("SD-T930", "this run has kept no samples yet", where=str(folder), expect=SAMPLES, fix=fix)
    fix = "delete it and report.html, then run the recipe: it samples again"
    refuse_other_result(folder, SAMPLES, fix)
    try:
        images: NDArray[np.uint8] = load_arrays(path, ["arr_0"])["arr_0"]
    except (OSError, ValueError, KeyError) as fault:
        raise unreadable_error(path, str(fault)[:160], fix) from fault
    return images
