"""Runs on a folder of images continue where the folder is gone."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

import sddit
from sddit.errors import SdditError
from sddit.exchange.exporting import export_run
from sddit.progress import Progress
from sddit.recipes.recipe import Recipe
from sddit.recipes.resolve import resolve
from sddit.runs.pipeline import evaluate_run, run


def test_a_run_samples_where_its_data_is_gone_and_neither_trains_nor_scores(
    recipe_of: Callable[..., Recipe], tmp_path: Path
) -> None:
    images = tmp_path / "images"
    for label in ("cat", "dog"):
        (images / label).mkdir(parents=True)
        for number in range(12):
            Image.new("RGB", (8, 8), (20 * number, 5 * number, 90 * (label == "dog"))).save(
                images / label / f"{number}.png"
            )
    overrides = ["dataset.name=folder", f"dataset.path={images}", "dataset.size=8", "dataset.normalize=standard"]
    recipe = recipe_of(*overrides, "evaluate.features=['toy']", "evaluate.neighbours=1", "dataset.holdout=0.3")
    folder = run(recipe, out=tmp_path / "runs", device="cpu", progress=Progress()).folder
    before = sddit.sample(sddit.load(folder), per_class=2)
    shutil.rmtree(images)
    model = sddit.load(folder)
    assert model.require_recipe().facts.class_names == ("cat", "dog")
    assert torch.equal(sddit.sample(model, per_class=2), before)
    assert torch.equal(sddit.sample(model, per_class=2, overrides=["sampler.steps=4"]), before)
    assert torch.equal(sddit.sample(sddit.load(export_run(folder).folder), per_class=2), before)
    for refused in (
        lambda: resolve(folder / "recipe.resolved.json"),
        lambda: evaluate_run(folder, device="cpu", progress=Progress()),
    ):
        with pytest.raises(SdditError, match="SD-D300"):
            refused()
