"""Load the second network of a guidance rule: of another run, or other weights of the same one."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from sddit.backbones import Backbone
from sddit.errors import error
from sddit.recipes.recipe import Recipe
from sddit.recipes.resolve import resolve_tables, resolve_without_data
from sddit.recipes.second_networks import find_second
from sddit.recipes.start_weights import CONFIG, refuse_plugin_code, tables_of
from sddit.storage.run_folder import RECIPE, recipe_path
from sddit.training.warm_start import build_trained, read_weights


def load_second_network(recipe: Recipe, device: torch.device | str, *, step: int | None = None) -> Backbone | None:
    """Return the second network that the guidance of a run's recipe names, with its weights; None if it names none.

    Args:
        recipe: that the run is sampled with. Its path is in the folder of the run.
        device: where the network runs.
        step: of the checkpoint that is sampled, for other weights of the same run.

    Raises as `find_second` does, SD-C410 for weights that do not fit, and SD-C457 for an export with plugin code.
    """
    second = recipe.guidance.params.second_network
    if second is None:
        return None
    if not second.run:
        if recipe.path is None:
            what, expect = "the guidance compares with other weights of this run", "a run folder"
            raise error("SD-C445", what, where="guidance", got="a recipe without a folder", expect=expect)
        second = replace(second, run=str(recipe.path.parent), step=step)
    weights = find_second(second)
    return build_trained(recipe_of(Path(second.run)), partial(read_weights, weights), where=str(weights.file)).to(
        device
    )


def recipe_of(folder: Path) -> Recipe:
    """Return the recipe of a run folder or an exported one, whose data may be missing."""
    if (folder / RECIPE).is_file():
        return resolve_without_data(recipe_path(folder))
    tables = tables_of(folder)
    refuse_plugin_code(folder, tables, "name the run that was exported")
    return resolve_tables(tables, folder / CONFIG)
