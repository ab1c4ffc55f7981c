"""`sddit-run export`: the network of a run as a folder that loads without its data, or in a published layout."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from torch import Tensor

from sddit import __version__
from sddit.data.declared import declared_table
from sddit.errors import error
from sddit.exchange.conversion import offering, written
from sddit.exchange.layouts import OURS, UNDROPPED
from sddit.exchange.model_card import model_card
from sddit.recipes.recipe import Recipe, facts_to_json
from sddit.recipes.resolve import resolve_without_data
from sddit.recipes.start_weights import CONFIG, EXPORT_FORMAT, WEIGHTS, Found, found
from sddit.storage.atomic import replace_file
from sddit.storage.manifest import seal_manifest
from sddit.storage.run_folder import made, recipe_in
from sddit.storage.tensors import pack
from sddit.training.warm_start import read_weights

CARD = "README.md"
LEFT_OUT = ("tracker", "start", "data")  # of the recipe: what sampling does not need, or `declared` states


@dataclass(frozen=True, slots=True)
class Exported:
    """What was written where."""

    folder: Path
    files: tuple[Path, ...]
    weights: Found
    note: str  # what a person who loads it elsewhere should know


def export_run(
    run: Path, *, out: Path | None = None, weights: str = "", step: int | None = None, layout: str = OURS
) -> Exported:
    """Write the network of a run for others.

    Args:
        run: a run folder.
        out: an empty or new folder; None: `export` in the run folder, `export-LAYOUT` for a published layout.
        weights: `student` or the label of an [ema]; empty: the one the run samples with.
        step: which checkpoint; None: the newest.
        layout: `ours`, which `sddit.load(folder)` reads, or a published one.

    Raises:
        SdditError: SD-C441 for an unknown layout, SD-C453 for a network that has no place in it, SD-F708 for a folder that
            holds something.
    """
    note = "" if layout == OURS else str(offering(layout).format(layout).note)
    recipe, source = resolve_without_data(recipe_in(run)), found(run, weights, step)
    if layout != OURS and recipe.facts.num_classes and recipe.dataset.params.label_drop == 0:
        note = f"{note} {UNDROPPED}".strip()
    state = read_weights(source)
    files = ours(recipe, source, state) if layout == OURS else theirs(recipe, layout, state)
    size = sum(tensor.numel() for tensor in state.values())
    files[CARD] = model_card(recipe, source, layout, size, note).encode()
    folder = empty(out or run / ("export" if layout == OURS else f"export-{layout}"))
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        replace_file(folder / name, data)
    return Exported(folder, tuple(folder / name for name in files), source, note)


def ours(recipe: Recipe, source: Found, state: Mapping[str, Tensor]) -> dict[str, bytes]:
    """Config with the recipe in it, weights under our own names, and the recipe's one-file plugins."""
    data = pack(state)
    config = {
        "format": EXPORT_FORMAT,
        "sddit": __version__,
        "weights": {"label": source.label, "step": source.step, "sha256": sha256(data).hexdigest()},
        "recipe": without_data(recipe),
    }
    plugins = {Path(name).name: file.read_bytes() for name, file in recipe.plugin_files.items()}
    return {CONFIG: seal_manifest(config), WEIGHTS: data, **plugins}


def theirs(recipe: Recipe, layout: str, state: Mapping[str, Tensor]) -> dict[str, bytes]:
    """The constructor's arguments and the weights, where the layout has them."""
    config, tensors = written(recipe, layout, state)
    config_name, weights_name = offering(layout).format(layout).files
    return {config_name: as_json(config), weights_name: pack(tensors)}


def without_data(recipe: Recipe) -> dict[str, Any]:
    """The resolved recipe as it can be sampled anywhere: the facts of the data in the place of the data."""
    tables = recipe.to_json()
    tables["dataset"] = declared_table(facts_to_json(recipe.facts), tables["dataset"])
    tables["evaluate"]["features"] = []
    return {key: value for key, value in tables.items() if key not in LEFT_OUT}


def empty(folder: Path) -> Path:
    """The folder, made if there is none. SD-F708 if it holds something."""
    real = made(folder)
    if any(real.iterdir()):
        raise error(
            "SD-F708",
            "the folder to export to is not empty",
            where=str(folder),
            fix="choose another folder with --out, or empty it",
        )
    return real


def as_json(value: Any) -> bytes:
    return (json.dumps(value, indent=1, allow_nan=False) + "\n").encode()
