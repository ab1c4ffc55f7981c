"""Provide a host of toys and the standard plugin, and recipes of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sddit.plugins.host import Host, using_host
from sddit.recipes.recipe import Recipe
from sddit.recipes.resolve import resolve
from sddit.testing import TOY_PAIR_RECIPE, TOY_RECIPE
from sddit.testing.toys import plugin

EXTRA = """
save_every = 2
log_every = 1
[ema.main]
decay = 0.9
[evaluate]
samples = 6
previews = 0
"""


@pytest.fixture
def toys() -> Iterator[Host]:
    """Use a host with the toys and the standard plugin."""
    host = Host(builtins=("sddit",))
    host.add("toy", plugin)
    with using_host(host):
        yield host


@pytest.fixture
def toy_recipe(tmp_path: Path, toys: Host) -> Path:
    """Write a recipe of toys, and return its path."""
    path = tmp_path / "recipes_of_test" / "toy.toml"
    path.parent.mkdir()
    path.write_text(TOY_RECIPE, encoding="utf-8")
    return path


@pytest.fixture
def recipe_of(tmp_path: Path, toys: Host) -> Callable[..., Recipe]:
    """`recipe_of("train.steps=6")` is the toy recipe with a teacher and an EMA."""
    path = tmp_path / "toy_pair.toml"
    path.write_text(TOY_PAIR_RECIPE.replace("batch = 8\n", "batch = 8" + EXTRA))
    return lambda *overrides: resolve(path, overrides)
