"""Shapes without images: they resolve, plan and sample, and are refused where images are needed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from sddit.data.declared import DeclaredParams, declared_table
from sddit.data.preview import declared
from sddit.errors import SdditError
from sddit.plugins.host import using_host
from sddit.progress import Progress
from sddit.recipes.costs import plan
from sddit.recipes.recipe import Recipe, facts_to_json
from sddit.recipes.resolve import resolve
from sddit.runs.pipeline import run
from sddit.testing import check
from sddit.testing.toys.plugin import TOY_RECIPE, toy_host
from sddit.training.build import build_session
from sddit.training.loop import train


@pytest.fixture
def recipe_of(tmp_path: Path) -> Callable[..., Recipe]:
    path = tmp_path / "toy.toml"
    path.write_text(
        TOY_RECIPE.replace('[dataset]\nname = "toy"', '[dataset]\nname = "declared"\nimage = [4, 8, 8]\nclasses = 7')
    )

    def make(*overrides: str) -> Recipe:
        with using_host(toy_host()):
            return resolve(path, overrides)

    return make


def test_facts_are_those_declared() -> None:
    facts = DeclaredParams(image=(4, 32, 32), classes=7).facts()
    assert (facts.class_names, facts.mean, facts.std) == (tuple("0123456"), (0.0,) * 4, (0.5,) * 4)
    named = DeclaredParams(image=(1, 8, 8), class_names=("a", "b"), mean=(0.1,), std=(0.4,), train_images=9)
    assert (named.facts().num_classes, named.facts().train_size) == (2, 9)
    assert "9 images" in named.facts().source
    assert named.facts().fingerprint != facts.fingerprint
    assert DeclaredParams(image=(3, 8, 8)).facts().num_classes == 0


@pytest.mark.parametrize(
    "wrong", [{"mean": (0.0,)}, {"std": (1.0, 1.0)}, {"classes": 3, "class_names": ("a", "b")}, {"image": (0, 8, 8)}]
)
def test_contradictions_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        DeclaredParams.model_validate({"image": (4, 8, 8), **wrong})


def test_what_a_resolved_recipe_states_of_data_declares_it_again() -> None:
    for params in (
        DeclaredParams(image=(4, 8, 8), classes=12, label_drop=0.2, normalize="standard"),
        DeclaredParams(image=(1, 8, 4), class_names=("b", "a"), mean=(0.3,), std=(0.2,), train_images=5),
    ):
        facts = params.facts()
        table = declared_table(facts_to_json(facts), params.model_dump(mode="json"))
        again = DeclaredParams.model_validate_json(json.dumps({k: v for k, v in table.items() if k != "name"}))
        assert again.facts() == facts
        assert (again.label_drop, again.normalize) == (params.label_drop, params.normalize)


def test_it_resolves_and_plans_and_trains_on_nothing(recipe_of: Callable[..., Recipe], tmp_path: Path) -> None:
    recipe = recipe_of("train.batch=4096")
    assert plan(recipe).batch == 4096
    with pytest.raises(SdditError, match=r"SD-D340(.|\n)*holds no images"):
        run(recipe, out=tmp_path / "runs", device="cpu", progress=Progress())
    assert not (tmp_path / "runs").exists()
    session = build_session(recipe, torch.device("cpu"))
    with pytest.raises(SdditError, match="SD-D340"):
        train(session, None)  # type: ignore[arg-type]
    with pytest.raises(SdditError, match=r"SD-D340(.|\n)*evaluate\.features"):
        recipe_of("evaluate.features=['toy']")


def test_many_classes_with_long_names_go_through_a_resolved_recipe(
    recipe_of: Callable[..., Recipe], tmp_path: Path
) -> None:
    tables = recipe_of().to_json()
    names = [f"{number}: a class with a rather long name" for number in range(2000)]
    tables["dataset"] = {"name": "declared", "image": [4, 8, 8], "class_names": names}
    (tmp_path / "recipe.resolved.json").write_text(json.dumps(tables, indent=1))
    with using_host(toy_host()):
        assert resolve(tmp_path / "recipe.resolved.json").facts.class_names == tuple(names)


@pytest.mark.usefixtures("toys")
def test_it_conforms() -> None:
    for image in ((3, 8, 8), (4, 8, 8)):
        check("declared", kind="datasets", image=image, classes=3)


@pytest.mark.parametrize(("channels", "grey"), [(1, True), (3, False), (4, False), (2, False)])
def test_images(channels: int, grey: bool) -> None:
    data = declared(DeclaredParams(image=(channels, 2, 2)), split="test")
    x = torch.linspace(-1, 1, channels * 4).reshape(1, channels, 2, 2)
    images = data.to_images(x)
    assert (images.shape, images.dtype) == ((1, 3, 2, 2), torch.uint8)
    assert (torch.equal(images[:, 0], images[:, 1])) == grey
    if channels in (1, 3):
        assert (images.min(), images.max()) == (0, 255)
