"""Import published weights as a run folder, to sample from or to start training from."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from torch import Tensor

from sddit import __version__
from sddit.errors import SdditError, error
from sddit.exchange.conversion import ConvertedWeights, backbone_with_layout, convert_from_layout, model_mismatch
from sddit.exchange.files import WeightFile, read_weight_file
from sddit.exchange.layouts import merge_tables, read_config_file
from sddit.exchange.number_types import rounded
from sddit.recipes.recipe import Recipe
from sddit.recipes.resolve import resolve_tables
from sddit.recipes.start_weights import PROVENANCE, is_export
from sddit.storage.checkpoints import Store
from sddit.storage.run_folder import RECIPE, RUN_IDS, RunFolder
from sddit.storage.tensors import pack
from sddit.training.networks import DTYPES, default_dtype


@dataclass(frozen=True, slots=True)
class Imported:
    """Result of an import."""

    folder: Path
    recipe: Recipe
    converted: ConvertedWeights
    file: WeightFile
    set_name: str  # which tensors of the file; empty: all
    notes: tuple[str, ...]  # what was renamed, dropped and converted
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
        path: a safetensors file, a pickle of torch.save if it is trusted, or a folder that holds weights and config
            under the file names of the layout.
        layout: published layout of the tensor names.
        out: parent folder; the run folder is `<name of the file>-<id>`, one per file, set and recipe.
        config: arguments of the published constructor that do not follow from the tensors.
        recipe: recipe of these weights. Default: a new one with the data set `declared`.
        weights: which set of a nested file, such as `ema` or `model`, or the prefix of its names; empty: `ema` if there
            is one.
        trust_pickle: allow a pickle.

    Raises:
        SdditError: the file cannot be read, the tensors do not fit the layout or the config, or the recipe describes
            a different network (SD-C456).
    """
    source, stated = locate_weights(path, layout)
    file = read_weight_file(source, weights=weights, trust_pickle=trust_pickle)
    given = merge_tables(read_config_file(stated) if stated else {}, config or {})
    converted = convert_from_layout(file.state, layout, given, str(source))
    if recipe is None:
        recipe = recipe_for_weights(converted, run_name(path.resolve() if path.is_dir() else path))
    elif reason := model_mismatch(recipe, converted):
        raise error(
            "SD-C456",
            "the recipe describes a different network than these weights",
            where=recipe.name,
            got=reason,
            expect="the network of the weights",
        )
    dtype = DTYPES[recipe.train.precision]
    with default_dtype(dtype):
        tensors = converted.parameters()
    set_name = ".".join(filter(None, (file.set_name, converted.set_name)))
    notes = [f"config: {stated}"] if stated else []
    notes += [*file.notes, *converted.notes, *rounded(converted.state, dtype)]
    import_id = sha256(f"{recipe.run_id}/{file.sha256}/{set_name}".encode()).hexdigest()[:12]
    target = out / f"{recipe.name}-{import_id}"
    with RunFolder(target) as folder:
        existed = (folder.path / RECIPE).is_file()
        imported = Imported(folder.path, recipe, converted, file, set_name, tuple(notes), existed)
        if not existed:
            _write(folder, imported, tensors, import_id)
    return imported


def _write(folder: RunFolder, imported: Imported, tensors: Mapping[str, Tensor], import_id: str) -> None:
    """Write the checkpoint, the one-file plugins, the origin, and last the recipe, which completes the folder."""
    recipe, file, converted = imported.recipe, imported.file, imported.converted
    store = Store(folder.path / "checkpoints", keep=1, run_ids=[import_id])
    store.save(file.step, checkpoint_files(recipe, tensors, file))
    for name, plugin in recipe.plugin_files.items():
        folder.write_bytes(Path(name).name, plugin.read_bytes())
    origin = {
        "file": file.path.name,
        "sha256": file.sha256,
        "weights": imported.set_name,
        "layout": converted.layout,
        "config": converted.config,
        "guessed": sorted(converted.guessed),
        "notes": list(imported.notes),
        "sddit": __version__,
    }
    folder.write_json(PROVENANCE, origin)
    folder.write_sealed_json(RECIPE, {**recipe.to_json(), RUN_IDS: [import_id]})


def locate_weights(path: Path, layout: str) -> tuple[Path, Path | None]:
    """Return the weight file and the config next to it, under the file names of the layout.

    Args:
        path: a file, or a folder such as diffusers writes: a pipeline, or its `transformer`.
        layout: decides the names.
    """
    if not path.is_dir() and not path.is_file():
        return path, None  # opening it reports what it is
    config, weights = backbone_with_layout(layout).format(layout).files
    if path.is_dir():
        if _is_own_export(path):
            fix = f"sddit-run sample {shlex.quote(str(path))}"
            raise error(
                "SD-C444", "this folder was written by sddit-run export; it needs no import", where=str(path), fix=fix
            )
        places = [path / weights, path / Path(weights).name]
        found = next((place for place in places if place.is_file()), None)
        if found is None:
            expect = f"{weights}, or {Path(weights).name}" if places[0] != places[1] else weights
            fix = "pass the weight file itself"
            raise error(
                "SD-C444", "the folder holds no weights of this layout", where=str(path), expect=expect, fix=fix
            )
        path = found
    stated = path.parent / Path(config).name
    is_pair = path.name == Path(weights).name and stated.is_file() and not _is_own_export(path.parent)
    return path, stated if is_pair else None


def _is_own_export(folder: Path) -> bool:
    try:
        return is_export(folder)
    except SdditError:  # no JSON: the config is refused where it is read
        return False


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
