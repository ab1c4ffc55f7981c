"""Import published weights as a run folder, to sample from or to start training from."""

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
from sddit.exchange.conversion import ConvertedWeights, convert_from_layout, model_mismatch
from sddit.exchange.files import WeightFile, read_weight_file
from sddit.exchange.layouts import merge_tables
from sddit.recipes.recipe import Recipe
from sddit.recipes.resolve import resolve_tables
from sddit.recipes.start_weights import PROVENANCE
from sddit.storage.checkpoints import Store
from sddit.storage.run_folder import RECIPE, RUN_IDS, RunFolder
from sddit.storage.tensors import pack, require_finite
from sddit.training.networks import DTYPES, default_dtype


@dataclass(frozen=True, slots=True)
class Imported:
    """Result of an import."""

    folder: Path
    recipe: Recipe
    converted: ConvertedWeights
    file: WeightFile
    existed: bool  # the run folder existed before


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
    """Write a run folder with published weights, which can be sampled and named in `[start]`.

    Args:
        path: a safetensors file, or a pickle of torch.save if it is trusted.
        layout: published layout of the tensor names.
        out: parent folder; the run folder is `<name of the file>-<id>`, one per file, set and recipe.
        config: arguments of the published constructor that do not follow from the tensors.
        recipe: recipe of these weights. Default: a new one with the data set `declared`.
        weights: which set of a nested file, such as `ema` or `model`; empty: `ema` if there is one.
        trust_pickle: allow a pickle.

    Raises:
        SdditError: the file cannot be read, the tensors do not fit the layout or the config, or the recipe describes
            a different network (SD-C456).
    """
    file = read_weight_file(path, weights=weights, trust_pickle=trust_pickle)
    converted = convert_from_layout(file.state, layout, config or {})
    require_finite(converted.state, path.name)
    if recipe is None:
        recipe = recipe_for_weights(converted, run_name(path))
    elif reason := model_mismatch(recipe, converted):
        raise error(
            "SD-C456",
            "the recipe describes a different network than these weights",
            where=recipe.name,
            got=reason,
            expect="the network of the weights",
        )
    with default_dtype(DTYPES[recipe.train.precision]):
        tensors = converted.parameters()
    import_id = sha256(f"{recipe.run_id}/{file.sha256}/{file.set_name}".encode()).hexdigest()[:12]
    with RunFolder(out / f"{recipe.name}-{import_id}") as folder:
        if existed := (folder.path / RECIPE).is_file():
            return Imported(folder.path, recipe, converted, file, existed)
        store = Store(folder.path / "checkpoints", keep=1, run_ids=[import_id])
        store.save(file.step, checkpoint_files(recipe, tensors, file))
        for name, plugin in recipe.plugin_files.items():
            folder.write_bytes(Path(name).name, plugin.read_bytes())
        origin = {"file": path.name, "sha256": file.sha256, "weights": file.set_name, "layout": layout}
        guessed = sorted(converted.guessed)
        folder.write_json(PROVENANCE, {**origin, "config": converted.config, "guessed": guessed, "sddit": __version__})
        folder.write_sealed_json(RECIPE, {**recipe.to_json(), RUN_IDS: [import_id]})
    return Imported(folder.path, recipe, converted, file, existed)


def recipe_for_weights(converted: ConvertedWeights, name: str) -> Recipe:
    """Return a recipe that samples a published network as its authors did. It has no training data."""
    image, classes = converted.shapes.image, converted.shapes.num_classes
    if (schedule := converted.description.noise_schedule) is None:
        raise error(
            "SD-C442",
            f"the layout {converted.layout!r} states no noise schedule",
            where="--layout",
            fix="add --recipe with a recipe that has one",
        )
    tables = {
        "name": name,
        "backbone": {"name": converted.component.qualified, **converted.description.backbone},
        "noise_schedule": {"name": schedule[0], **schedule[1]},
        "dataset": {"name": "sddit/declared", "image": list(image), "classes": classes},
    }
    return resolve_tables(merge_tables(tables, converted.description.recipe), None)


def run_name(path: Path) -> str:
    """Return a run name made from the stem of a file."""
    return re.sub(r"[^\w.-]+", "-", path.stem).strip("-.") or "imported"


def checkpoint_files(recipe: Recipe, tensors: Mapping[str, Tensor], file: WeightFile) -> dict[str, bytes]:
    """Return {name: bytes} of a checkpoint that holds only the network, as student and as every EMA of the recipe."""
    files = {"model.safetensors": pack({f"backbone.{name}": tensor for name, tensor in tensors.items()})}
    if recipe.ema:
        emas = {f"{label}.{name}": tensor for label in recipe.ema for name, tensor in tensors.items()}
        files["ema.safetensors"] = pack(emas)
    state = {"step": file.step, "imported": file.path.name}
    return {**files, "state.json": json.dumps(state, indent=1).encode()}
