"""Test that components see of a recipe what RecipeView declares, and nothing else."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest

import sddit
from sddit.interfaces import RecipeView
from sddit.interfaces.params import TrainView
from sddit.recipes.checks import components
from sddit.recipes.merge import load
from sddit.recipes.recipe import Recipe
from sddit.recipes.resolve import resolve

ROOT = Path(sddit.__file__).parents[2]
RECIPES = [*sorted((ROOT / "recipes").glob("digits/*.toml")), ROOT / "recipes/fashion.toml"]
QUESTIONS = ("check", "idle", "warnings")


def members(protocol: type) -> list[str]:
    return [name for name in vars(protocol) if not name.startswith("_")]


class Narrow:
    """A recipe reduced to what RecipeView declares."""

    def __init__(self, recipe: Recipe) -> None:
        for name in members(RecipeView):
            setattr(self, name, getattr(recipe, name))
        self.train = type("Train", (), {name: getattr(recipe.train, name) for name in members(TrainView)})()


def answers(recipe: Recipe, view: Any) -> list[object]:
    return [
        list(getattr(chosen.params, question)(view)) for chosen in components(recipe).values() for question in QUESTIONS
    ]


def test_the_view_declares_no_more_than_a_recipe_has() -> None:
    recipe = resolve(RECIPES[0])
    assert all(hasattr(recipe, name) for name in members(RecipeView))
    assert not hasattr(Narrow(recipe), "evaluate")


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_components_answer_the_same_from_the_view_alone(path: Path) -> None:
    absent = [f"{table}=false" for table in ("start", "snapshot") if table in load(path).tables]
    recipe = resolve(path, absent)
    assert answers(recipe, Narrow(recipe)) == answers(recipe, recipe)


def test_plugins_import_nothing_of_recipes() -> None:
    """The type checker then holds them to RecipeView: it is the only recipe they can name."""
    sources = [*(ROOT / "plugins").rglob("*.py"), *(ROOT / "core/sddit/data").rglob("*.py")]
    assert len(sources) > 40
    found = {
        f"{path.relative_to(ROOT)}: {node.module}"
        for path in sources
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("sddit.recipes")
    }
    assert found == set()
