"""Recipes by path and by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from sddit.errors import SdditError
from sddit.recipes import search as lookup
from sddit.recipes.search import find, names

Write = Callable[[str, str], Path]


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "wheel" / "shipped_recipes"
    (folder / "base").mkdir(parents=True)
    for name in ("quickstart.toml", "base/digits.toml"):
        (folder / name).write_text("a = 1", encoding="utf-8")
    monkeypatch.setattr(lookup, "shipped", lambda: folder)
    return folder


def test_a_path_is_taken_as_it_is(write: Write, shipped: Path) -> None:
    own = write("quickstart.toml", "a = 1")
    assert find("quickstart.toml") == own
    assert find(own.absolute()) == own.absolute()
    assert find("quickstart") == own


def test_a_name_is_sought_here_first_and_then_among_the_shipped(write: Write, shipped: Path) -> None:
    assert find("quickstart") == shipped / "quickstart.toml"
    assert find("base/digits") == shipped / "base" / "digits.toml"
    assert find("recipes/quickstart.toml") == shipped / "quickstart.toml"  # what the README says, in any folder
    own = write("recipes/quickstart.toml", "a = 1")
    assert find("quickstart") == find("recipes/quickstart.toml") == own


def test_a_missing_one_gets_the_nearest_name(write: Write, shipped: Path) -> None:
    write("recipes/mine.toml", "a = 1")
    assert names() == ["base/digits", "mine", "quickstart"]
    with pytest.raises(SdditError) as caught:
        find("quikstart")
    (found,) = caught.value.problems
    assert (found.code, found.expect) == (
        "SD-R121",
        "one of mine, quickstart, base/digits   (did you mean 'quickstart'?)",
    )


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("recipes/quickstrat.toml", "quickstart"),
        ("quickstrat.toml", "quickstart"),
        ("Quickstart", "quickstart"),
        ("digit", "base/digits"),
        ("base/digit.toml", "base/digits"),
        ("recipes/base/digist", "base/digits"),
        ("xyzzy", ""),
    ],
)
def test_the_nearest_name_is_found_without_folders_and_suffix(shipped: Path, typed: str, meant: str) -> None:
    assert lookup.nearest_recipe(typed, ["base/digits", "quickstart"]) == meant


def test_names_with_few_folders_are_listed_first() -> None:
    known = [*(f"ablations/{number}" for number in range(30)), "base/x", "quickstart"]
    assert lookup.one_of_recipes("z", known).startswith("one of quickstart, ablations/0,")
    assert lookup.one_of_recipes("z", known).endswith(", ...")


@pytest.mark.parametrize("source", ["", ".", "recipes", "../quickstart", "/quickstart", "nothing.json"])
def test_what_is_not_a_recipe_is_refused(write: Write, shipped: Path, source: str) -> None:
    write("recipes/mine.toml", "a = 1")
    with pytest.raises(SdditError, match="SD-R121"):
        find(source)


def test_the_checkout_ships_its_own_recipes() -> None:
    assert lookup.shipped().name in {"recipes", "shipped_recipes"}
    assert (lookup.shipped() / "quickstart.toml").is_file()
