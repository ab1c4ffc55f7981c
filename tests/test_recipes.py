"""Every shipped recipe resolves and plans, small ones train, and a misspelt key is always reported."""

from __future__ import annotations

import shutil
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from stand_ins import RECIPES, RUNS_OF, stand_ins

from sddit.errors import SdditError
from sddit.progress import Progress
from sddit.recipes.costs import plan
from sddit.recipes.merge import load
from sddit.recipes.recipe import Recipe
from sddit.recipes.resolve import resolve
from sddit.runs.pipeline import run
from sddit.storage.metrics_log import read_metrics

ABLATIONS = RECIPES / "ablations"  # see test_shipped_ablations.py
ALL = sorted(p for p in RECIPES.rglob("*.toml") if p.parent.name != "base" and not p.is_relative_to(ABLATIONS))
PUBLISHED = [path for path in ALL if path.parent.name == "imagenet256"]
OWN_IMAGES = RECIPES / "folder.toml"
ENCODED = RECIPES / "emoji-latent.toml"  # test_encoded_data.py trains it
RUNNABLE = [path for path in ALL if path not in PUBLISHED and path not in (OWN_IMAGES, ENCODED)]
OTHER_RUNS = {path: table for path in ALL for table in RUNS_OF if table in load(path).tables}
"""Second stages, and the table in which they name the run of the first."""
SMALL = ["train.steps=2", "train.batch=16", "train.log_every=1", "optimizer.warmup=0", "evaluate.samples=20"]
SMALL += ["evaluate.previews=1", "evaluate.per_class=1", "evaluate.features=[]", "sampler.steps=2"]


def names(paths: list[Path]) -> list[str]:
    return [str(path.relative_to(RECIPES)) for path in paths]


def resolved(path: Path) -> Recipe:
    """Resolve a recipe, with stand-ins for data that is not on this machine."""
    return resolve(path, stand_ins(path))


@pytest.mark.parametrize("path", ALL, ids=names(ALL))
def test_recipe_plans_without_warnings_or_idle_keys(path: Path) -> None:
    recipe = resolved(path)
    assert recipe.warnings == ()
    assert recipe.idle == ()
    planned = plan(recipe)
    assert planned.not_stated == ()
    assert planned.flops_per_image is not None
    assert planned.flops_per_image > 0


def begin(path: Path, out: Path) -> list[str]:
    """Train the run that a second stage uses, and return it as an override; nothing for other recipes."""
    if path not in OTHER_RUNS:
        return []
    stage = path.with_name(path.name.replace("-tune", "").replace("-guided", ""))
    first = run(resolve(stage, SMALL), out=out, device="cpu", progress=Progress())
    return [f"{OTHER_RUNS[path]}.run={first.folder}"]


@pytest.mark.parametrize("path", RUNNABLE, ids=names(RUNNABLE))
def test_recipe_trains_two_steps_and_samples(path: Path, tmp_path: Path) -> None:
    result = run(resolve(path, [*SMALL, *begin(path, tmp_path)]), out=tmp_path, device="cpu", progress=Progress())
    rows = read_metrics(result.folder / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2]
    assert rows[0]["loss"] > 0
    assert result.report.is_file()


@pytest.mark.parametrize("path", RUNNABLE, ids=names(RUNNABLE))
def test_plan_counts_the_parameters_that_are_built(path: Path) -> None:
    from sddit.training.build import build_session

    recipe = resolve(path, [*SMALL, *stand_ins(path)])
    planned, session = plan(recipe), build_session(recipe, torch.device("cpu"))
    assert planned.backbone_parameters == sum(p.numel() for p in session.student.backbone.parameters())
    heads = list(session.student.terms.parameters())
    assert sum(filter(None, planned.heads_parameters.values())) == sum(p.numel() for p in heads if p.requires_grad)
    assert planned.frozen_parameters == sum(p.numel() for p in heads if not p.requires_grad)
    averaged = session.teacher.parts().values() if session.teacher else ()
    assert planned.teacher_parameters == sum(p.numel() for part in averaged for p in part.parameters())


@pytest.mark.parametrize("packed", [False, True], ids=["folder", "zip"])
def test_own_images_train_with_the_path_alone(tmp_path: Path, packed: bool) -> None:
    for number in range(48):
        levels = np.random.default_rng(number).integers(0, 256, (40 + number, 70, 3), dtype=np.uint8)
        file = tmp_path / "images" / ("cat", "dog")[number % 2] / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(levels).save(file)
    data = ["dataset.path=" + str(tmp_path / "images")]
    if packed:
        shutil.make_archive(str(tmp_path / "images"), "zip", tmp_path / "images")
        data = ["dataset.name=zip", "dataset.size=64", f"dataset.path={tmp_path / 'images.zip'}"]
    result = run(resolve(OWN_IMAGES, [*SMALL, *data]), out=tmp_path, device="cpu", progress=Progress())
    assert [row["step"] for row in read_metrics(result.folder / "metrics.jsonl")] == [1, 2]
    assert result.report.is_file()


def test_the_recipe_for_own_images_can_be_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Paths are relative to the copy, or if typed to the current folder, and never to the shipped recipe."""
    text = OWN_IMAGES.read_text(encoding="utf-8")
    assert text.count('# path = "images"') == 1
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "photos.toml").write_text(text.replace('# path = "images"', 'path = "images"'))
    monkeypatch.chdir(tmp_path)
    for source, overrides, tried in (
        ("mine/photos.toml", [], tmp_path / "mine" / "images"),
        ("mine/photos.toml", ["dataset.path=images"], tmp_path / "images"),
        ("folder", ["dataset.path=images"], tmp_path / "images"),
    ):
        with pytest.raises(SdditError) as missing:
            resolve(source, overrides)
        assert [(p.code, p.got) for p in missing.value.problems] == [("SD-D300", str(tried))]
    with pytest.raises(SdditError, match=r"SD-R109: 'dataset.path' is missing(.|\n)*expect: text, a path relative to"):
        resolve("folder")


def keys(table: dict[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yield every key of a recipe that names a setting, except labels and the keys of schedules."""
    for name, value in table.items():
        if name == "aux_heads":  # its keys are labels
            yield (*path, name)
        elif isinstance(value, dict):
            yield from keys(value, (*path, name))
        elif name not in ("extends", "name"):
            yield (*path, name)


@pytest.mark.parametrize("path", ALL, ids=names(ALL))
def test_every_misspelt_key_suggests_the_nearest(path: Path, tmp_path: Path) -> None:
    text = path.read_text()
    shutil.copytree(RECIPES, tmp_path / "recipes")
    misspelt = tmp_path / "recipes" / path.relative_to(RECIPES)
    for *_, key in keys(tomllib.loads(text)):
        wrong = f"{key[:-1]}x" if len(key) > 3 else f"{key}x"
        misspelt.write_text(text.replace(f"{key} =", f"{wrong} =", 1))
        with pytest.raises(SdditError) as found:
            resolve(misspelt)
        assert wrong in str(found.value), key


# Parameters in millions, as stated in the papers and their code.
STATED = {
    "dit-s2": 32.9,
    "dit-b2": 130.3,
    "dit-l2": 457.8,
    "dit-xl2": 674.8,
    "maskdit-xl2": 730.1,
    "sd-dit-xl2": 730.1,
}


@pytest.mark.parametrize("name", STATED)
def test_published_sizes_have_the_published_number_of_parameters(name: str) -> None:
    planned = plan(resolved(RECIPES / "imagenet256" / f"{name}.toml"))
    assert planned.backbone_parameters is not None
    assert round(planned.backbone_parameters / 1e6, 1) == STATED[name]
