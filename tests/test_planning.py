"""Plan the shipped ImageNet recipes before their data exist, from the facts that they declare."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sddit.ablations.planning.arms import expand, is_ablation
from sddit.ablations.planning.plan import make_plan
from sddit.data.latent_writing import write_cache
from sddit.errors import SdditError
from sddit.interfaces import Component
from sddit.recipes.costs import plan
from sddit.recipes.merge import Merged, load
from sddit.recipes.recipe import Recipe
from sddit.recipes.resolve import resolve, resolve_merged

RECIPES = Path(__file__).parents[1] / "recipes"
SINGLE = sorted((RECIPES / "imagenet256").glob("*.toml"))
ABLATIONS = sorted((RECIPES / "ablations" / "imagenet256").glob("*.toml"))
SD_DIT = RECIPES / "imagenet256" / "sd-dit-b2.toml"
IMAGES = 1_281_167
SMALL = ["codec=false", "train.batch=8"]


@pytest.fixture(autouse=True)
def nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("SDDIT_DATA", raising=False)
    monkeypatch.chdir(tmp_path)


def to_plan(path: Path, *overrides: str) -> Merged:
    return replace(load(path, overrides), planned=True)


def planned(path: Path, *overrides: str) -> Recipe:
    return resolve_merged(to_plan(path, *overrides))


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """A cache of the declared shape, of random moments."""
    moments = np.random.default_rng(0).normal(size=(40, 8, 32, 32)).astype(np.float32)
    moments[:, 4:] -= 6
    about: dict[str, Any] = {"layout": "mean+logvar", "scale": 0.5, "encoder": "none", "class_names": ("a", "b")}
    write_cache(tmp_path / "imagenet256-latents", [(moments, np.arange(40) % 2)], **about)
    return tmp_path / "imagenet256-latents"


FIRST_STAGES = [path for path in SINGLE if not {"start", "snapshot"} & load(path).tables.keys()]


@pytest.mark.parametrize("path", FIRST_STAGES, ids=lambda path: path.stem)
def test_a_recipe_plans_before_its_data_exist(path: Path) -> None:
    recipe = planned(path)
    assert "base/imagenet256.toml" in recipe.declared
    assert recipe.facts.source == "declared, since $SDDIT_DATA/imagenet256-latents does not exist"
    assert (recipe.facts.image, recipe.facts.num_classes, recipe.facts.train_size) == ((4, 32, 32), 1000, IMAGES)
    assert plan(recipe).flops_per_image


@pytest.mark.parametrize("path", ABLATIONS, ids=lambda path: path.stem)
def test_an_ablation_plans_before_its_data_exist_and_ranks_decoded_samples(path: Path) -> None:
    merged = to_plan(path)
    assert is_ablation(merged)
    made = make_plan(expand(merged), Path("runs"))
    assert made.metrics == ("mobilenet.fd",)
    assert not made.record().undecoded
    for arm in made.arms:
        assert arm.recipe.declared and arm.cost.not_stated == ()
        assert arm.recipe.facts.test_size == round(0.02 * IMAGES)
        assert arm.recipe.facts.train_size + arm.recipe.facts.test_size == IMAGES


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the package of the codec seem installed; these tests do not build it."""
    monkeypatch.setattr(Component, "missing", lambda component: ())


def test_a_plan_needs_the_package_of_the_codec_only_with_the_data(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Component, "missing", lambda component: ("diffusers",) if component.name == "diffusers" else ())
    assert planned(SD_DIT).declared
    with pytest.raises(SdditError, match="SD-P210"):
        resolve(SD_DIT)
    monkeypatch.setenv("SDDIT_DATA", str(cache.parent))
    with pytest.raises(SdditError, match="SD-P210"):
        planned(SD_DIT, "train.batch=8")
    assert planned(SD_DIT, *SMALL).declared == ""  # without the codec


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("make", [lambda: resolve(SD_DIT), lambda: expand(load(ABLATIONS[0]))], ids=["run", "ablation"])
def test_only_a_plan_uses_declared_facts(make: Any) -> None:
    with pytest.raises(SdditError, match=r"SD-R140(.|\n)*dataset\.path(.|\n)*SD-R140(.|\n)*codec\.path"):
        make()


@pytest.mark.usefixtures("installed")
def test_data_that_exist_are_read_also_by_a_plan(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SDDIT_DATA", str(cache.parent))
    read = planned(SD_DIT, *SMALL)
    assert (read.declared, read.facts.train_size, read.facts.num_classes) == ("", 40, 2)
    assert read.run_id == resolve(SD_DIT, SMALL).run_id
    with pytest.raises(SdditError, match="SD-D351"):  # with the data, the codec must be there too
        planned(SD_DIT, "train.batch=8")
    (cache / "latents.json").unlink()
    with pytest.raises(SdditError, match=r"SD-D341(.|\n)*no latents\.json"):
        planned(SD_DIT, *SMALL)
    shutil.rmtree(cache)
    assert planned(SD_DIT, *SMALL).declared


def test_what_is_declared_is_not_part_of_the_run_id(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SDDIT_DATA", str(cache.parent))
    run_id = resolve(SD_DIT, SMALL).run_id
    assert resolve(SD_DIT, [*SMALL, "dataset.declared.classes=7"]).run_id == run_id
    assert resolve(SD_DIT, [*SMALL, "dataset.declared=false"]).run_id == run_id
    assert resolve(SD_DIT, [*SMALL, f"dataset.path={cache}"]).run_id == run_id
    assert resolve(SD_DIT, [*SMALL, "dataset.label_drop=0.2"]).run_id != run_id


def test_a_plan_names_what_else_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(SdditError, match=r"SD-R108(.|\n)*std 1"):
        planned(SD_DIT, "dataset.declared.std=[0.5]")
    with pytest.raises(SdditError, match=r"SD-R102(.|\n)*did you mean 'classes'"):
        planned(SD_DIT, "dataset.declared.clases=10")
    mine = tmp_path / "mine.toml"
    mine.write_text('extends = "imagenet256/sd-dit-b2"\n[dataset]\ndeclared = false\n')
    with pytest.raises(SdditError, match="SD-R140"):
        planned(mine)
    with pytest.raises(SdditError, match=r"SD-T912"):  # scores of samples that nothing decodes
        planned(SD_DIT, "codec=false", 'evaluate.features=["mobilenet"]', "dataset.holdout=0.1")


def test_a_path_is_relative_to_the_users_recipe(tmp_path: Path) -> None:
    """Also where the shipped recipe that it extends has a path of its own."""
    mine = tmp_path / "project" / "mine.toml"
    mine.parent.mkdir()
    mine.write_text('extends = "imagenet256/sd-dit-b2"\n[dataset]\npath = "latents"\n')
    recipe = planned(mine)
    assert json.loads(json.dumps(recipe.to_json()))["dataset"]["path"] == str(mine.parent / "latents")
    assert "imagenet256-latents" not in recipe.facts.source


def text_of(sddit_run: Any, *words: str) -> str:
    said = sddit_run("-n", "imagenet256/sd-dit-b2", *words)
    assert said.status == 0, said.stderr
    return " ".join(said.stdout.split())


def test_the_plan_shows_memory_of_a_process_and_hours_on_devices(sddit_run: Any) -> None:
    flops = plan(planned(SD_DIT)).training_flops
    assert flops
    hours = flops / (0.4 * 8 * 989e12) / 3600
    text = text_of(sddit_run, "--on", "8xH100")
    assert f"on 8 x H100 {int(hours)} h {int(hours % 1 * 60)} min of training" in text
    assert "40% of 989 TFLOP/s each (bf16): stated, not measured" in text
    assert "in each of 8 processes (ddp): " in text and "too much" not in text
    assert "in each of 8 processes (fsdp): " in text_of(sddit_run, "--nproc", "8", "train.distributed=fsdp")
    assert "too much for RTX4090, which has 24 GB" in text_of(sddit_run, "--on", "RTX4090")
    assert "not measured" not in text_of(sddit_run) and "processes" not in text_of(sddit_run)
    assert "unknown no figure for fp64" in text_of(sddit_run, "--on", "H100", "train.precision=fp64")
    assert "facts of the data are declared in the recipe, not read" in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--on", "8xH100"), "--on needs -n"),
        (("-n", "--on", "8xH100", "--nproc", "4"), "--nproc is 4"),
        (("-n", "--on", "8xH10"), "did you mean H100?"),
        (("-n", "--on", "7xH100"), "SD-C421"),
    ],
)
def test_devices_that_cannot_be_planned(sddit_run: Any, words: tuple[str, ...], message: str) -> None:
    said = sddit_run("imagenet256/sd-dit-b2", *words)
    assert said.status != 0 and message in said.stderr
