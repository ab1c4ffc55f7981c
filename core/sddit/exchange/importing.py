"""`sddit-run import`: weights of a published implementation become a run folder, to sample from and to begin from."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from torch import Tensor

from sddit import __version__
from sddit.errors import error
from sddit.exchange.arguments import flat, together
from sddit.exchange.conversion import Published, understood, unlike
from sddit.exchange.files import WeightFile, read_weight_file
from sddit.recipes.recipe import Recipe
from sddit.recipes.resolve import resolve_tables
from sddit.recipes.start_weights import PROVENANCE
from sddit.storage.checkpoints import Store
from sddit.storage.run_folder import RECIPE, RunFolder
from sddit.storage.tensors import pack, require_finite
from sddit.training.precision import DTYPES, default_dtype


@dataclass(frozen=True, slots=True)
class Imported:
    """A run folder of imported weights."""

    folder: Path
    recipe: Recipe
    published: Published
    file: WeightFile
    already: bool  # it was there before


def import_weights(
    path: Path,
    *,
    layout: str,
    out: Path,
    config: Mapping[str, Any] | None = None,
    recipe: Recipe | None = None,
    weights: str = "",
    trust_pickle: bool = False,
) -> Imported:
    """Write a run folder that samples these weights and that `[start]` can begin from.

    Args:
        path: a safetensors file, or a pickle of torch.save if it is trusted.
        layout: whose names the tensors have.
        out: the folder of run folders; the new one is `<name of the file>-<id>`, one for each file, set and recipe.
        config: arguments of the published constructor that the tensors do not tell.
        recipe: whose network these weights are; None: one is made, with the data set `declared`.
        weights: which set of a nested file, such as `ema` or `model`; empty: the average if there is one.
        trust_pickle: read a pickle too.

    Raises:
        SdditError: the file is not read, the tensors are not of that layout or of that config, or the recipe describes
            another network.
    """
    file = read_weight_file(path, weights=weights, trust_pickle=trust_pickle)
    published = understood(file.state, layout, config or {})
    require_finite(published.state, path.name)
    if recipe is None:
        recipe = recipe_of(published, name_of(path))
    elif reason := unlike(recipe, published):
        raise error(
            "SD-C456",
            "the recipe describes another network than these weights are of",
            where=recipe.name,
            got=reason,
            expect="the network of the weights",
            fix="mend the recipe, or leave --recipe out",
        )
    with default_dtype(DTYPES[recipe.train.precision]):
        tensors = published.parameters()
    with RunFolder(out / f"{recipe.name}-{identity(recipe, file)}") as folder:
        if already := (folder.path / RECIPE).is_file():
            return Imported(folder.path, recipe, published, file, already)
        Store(folder.path / "checkpoints", keep=1).save(file.step, checkpoint(recipe, tensors, file))
        for name, plugin in recipe.plugin_files.items():
            folder.write_bytes(Path(name).name, plugin.read_bytes())
        folder.write_json(PROVENANCE, provenance(published, file))
        folder.write_sealed_json(RECIPE, recipe.to_json())
    return Imported(folder.path, recipe, published, file, already)


def recipe_of(published: Published, name: str) -> Recipe:
    """A recipe that samples a published network as its authors did, and that trains on nothing."""
    image, classes = published.shapes.image, published.shapes.num_classes
    if (schedule := published.description.noise_schedule) is None:
        raise error(
            "SD-C442",
            f"the layout {published.layout!r} comes without a noise schedule",
            where="--layout",
            fix="give --recipe, which has one",
        )
    tables = {
        "name": name,
        "backbone": {"name": published.component.qualified, **published.description.backbone},
        "noise_schedule": {"name": schedule[0], **schedule[1]},
        "dataset": {"name": "sddit/declared", "image": list(image), "classes": classes},
    }
    return resolve_tables(together(tables, published.description.recipe), None)


def name_of(path: Path) -> str:
    """The stem of a file as the name of a run."""
    return re.sub(r"[^\w.-]+", "-", path.stem).strip("-.") or "imported"


def identity(recipe: Recipe, file: WeightFile) -> str:
    """Tells imports of one name apart."""
    return sha256(f"{recipe.run_id}/{file.sha256}/{file.chosen}".encode()).hexdigest()[:12]


def checkpoint(recipe: Recipe, tensors: Mapping[str, Tensor], file: WeightFile) -> dict[str, bytes]:
    """The files of a checkpoint that only knows the network: as the student, and as every average of the recipe."""
    files = {"model.safetensors": pack({f"backbone.{name}": tensor for name, tensor in tensors.items()})}
    if recipe.ema:
        averages = {f"{label}.{name}": tensor for label in recipe.ema for name, tensor in tensors.items()}
        files["ema.safetensors"] = pack(averages)
    state = {"step": file.step, "imported": file.path.name}
    return {**files, "state.json": json.dumps(state, indent=1).encode()}


def provenance(published: Published, file: WeightFile) -> dict[str, Any]:
    """Where the weights came from."""
    return {
        "file": file.path.name,
        "sha256": file.sha256,
        "weights": file.chosen,
        "layout": published.layout,
        "config": published.config,
        "guessed": sorted(flat(published.guessed)),
        "sddit": __version__,
    }
