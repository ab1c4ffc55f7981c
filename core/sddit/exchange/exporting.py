"""Export the network of a run as a folder that loads without its data, or in a published layout."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

from torch import Tensor

from sddit import __version__
from sddit.data.declared import declared_table
from sddit.exchange.conversion import backbone_with_layout, convert_to_layout
from sddit.exchange.layouts import NO_LABEL_DROP, OURS
from sddit.exchange.model_card import model_card
from sddit.recipes.recipe import Recipe, facts_to_json
from sddit.recipes.resolve import resolve_without_data
from sddit.recipes.start_weights import (
    CONFIG,
    EXPORT_FORMAT,
    WEIGHTS,
    LocatedWeights,
    find_weights,
    is_export,
    read_config,
)
from sddit.storage.atomic import read_file
from sddit.storage.manifest import seal_manifest
from sddit.storage.output_folder import write_output
from sddit.storage.run_folder import RECIPE, recipe_path
from sddit.storage.tensors import pack
from sddit.training.warm_start import read_weights

CARD = "README.md"
DROPPED_TABLES = ("tracker", "start", "snapshot", "data")
"""Tables of the recipe that sampling does not need, or that `declared` states."""


@dataclass(frozen=True, slots=True)
class Exported:
    """Result of an export."""

    folder: Path
    files: tuple[Path, ...]
    weights: LocatedWeights
    note: str  # what users who load it elsewhere should know


def export_run(
    run: Path, *, out: Path | None = None, weights: str = "", step: int | None = None, layout: str = OURS
) -> Exported:
    """Write the network of a run to a folder to share.

    Args:
        run: a run folder.
        out: an empty or new folder, or one with an earlier export, which is replaced. Default: `export` in the run
            folder, `export-LAYOUT` for a published layout.
        weights: `student` or the label of an [ema]; empty: the weights that the run samples with.
        step: step of the checkpoint. Default: the newest.
        layout: `ours`, which `sddit.load(folder)` reads, or a published one.

    Raises:
        SdditError: SD-C441 for an unknown layout, SD-C453 for a network that it cannot hold, or an error of
            `write_output`.
    """
    published = "" if layout == OURS else str(backbone_with_layout(layout).format(layout).note)
    recipe, source = resolve_without_data(recipe_path(run)), find_weights(run, weights, step)
    note = published.replace("{num_classes}", str(recipe.facts.num_classes))
    if layout != OURS and recipe.facts.num_classes and recipe.dataset.params.label_drop == 0:
        note = f"{note} {NO_LABEL_DROP}".strip()
    state = read_weights(source)
    files = own_files(recipe, source, state) if layout == OURS else layout_files(recipe, layout, state)
    size = sum(tensor.numel() for tensor in state.values())
    files[CARD] = model_card(recipe, source, layout, size, note).encode()
    target = out or run / ("export" if layout == OURS else f"export-{layout}")
    written = write_output(target, files, kind="export", unlisted=partial(files_without_manifest, layout=layout))
    return Exported(written[0].parent, tuple(written), source, note)


def files_without_manifest(folder: Path, *, layout: str) -> set[str] | None:
    """Return the files of an export of an earlier version, which has no manifest; None if the folder is not one."""
    if (folder / RECIPE).is_file():
        return None  # a run
    if is_export(folder):
        plugins = read_config(folder)["recipe"].get("plugins", [])
        return {CONFIG, WEIGHTS, CARD, *(name for name in plugins if str(name).endswith(".py"))}
    with suppress(OSError):
        if layout != OURS and b"Written by sddit " in read_file(folder / CARD):
            return {CARD, *backbone_with_layout(layout).format(layout).files}
    return None


def own_files(recipe: Recipe, source: LocatedWeights, state: Mapping[str, Tensor]) -> dict[str, bytes]:
    """Return {name: bytes}: config with the recipe, weights under our names, and the recipe's one-file plugins."""
    data = pack(state)
    config = {
        "format": EXPORT_FORMAT,
        "sddit": __version__,
        "weights": {"label": source.label, "step": source.step, "sha256": sha256(data).hexdigest()},
        "recipe": recipe_without_data(recipe),
    }
    plugins = {Path(name).name: file.read_bytes() for name, file in recipe.plugin_files.items()}
    return {CONFIG: seal_manifest(config), WEIGHTS: data, **plugins}


def layout_files(recipe: Recipe, layout: str, state: Mapping[str, Tensor]) -> dict[str, bytes]:
    """Return {name: bytes}: constructor arguments and weights under the file names of the layout."""
    config, tensors = convert_to_layout(recipe, layout, state)
    config_name, weights_name = backbone_with_layout(layout).format(layout).files
    return {config_name: (json.dumps(config, indent=1, allow_nan=False) + "\n").encode(), weights_name: pack(tensors)}


def recipe_without_data(recipe: Recipe) -> dict[str, Any]:
    """Return the resolved recipe with the data set replaced by its facts, so that it can be sampled anywhere."""
    tables = recipe.to_json()
    tables["dataset"] = declared_table(facts_to_json(recipe.facts), tables["dataset"])
    tables["evaluate"]["features"] = []
    return {key: value for key, value in tables.items() if key not in DROPPED_TABLES}
