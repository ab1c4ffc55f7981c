"""docs/methods.md lists the methods as their recipes state them."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest

from sddit.recipes.resolve import resolve

ROOT = Path(__file__).parents[1]
ARMS = [path for folder in ("digits", "emoji") for path in sorted((ROOT / "recipes" / folder).glob("*.toml"))]


@pytest.fixture(scope="module")
def tool() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "tools" / "methods_page.py"))


@pytest.fixture(scope="module")
def entries(tool: dict[str, Any]) -> list[Any]:
    return list(tool["entries"]())


def test_the_page_of_the_docs_is_what_the_recipes_say(tool: dict[str, Any], entries: list[Any]) -> None:
    written = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
    assert written == tool["page"](entries), "run python tools/methods_page.py"


def test_every_arm_states_its_method(entries: list[Any]) -> None:
    stated = {entry.name for entry in entries}
    assert {f"{path.parent.name}/{path.stem}" for path in ARMS} <= stated


def test_a_section_states_what_is_published_what_is_ours_and_the_cost(tool: dict[str, Any], entries: list[Any]) -> None:
    section = "\n".join(tool["section"]("DiT", [e for e in entries if e.name == "digits/dit"]))
    about = resolve("digits/dit").about
    assert about.published in section
    assert about.ours in section
    assert section.endswith("| 478 k | 1.00 |")


def test_what_a_recipe_states_changes_nothing_and_is_not_inherited(tmp_path: Path) -> None:
    (tmp_path / "own.toml").write_text('extends = "digits/dit"\n')
    (tmp_path / "named.toml").write_text('extends = "digits/dit"\n[about]\nmethod = "Mine"\n')
    own, named, parent = resolve(tmp_path / "own.toml"), resolve(tmp_path / "named.toml"), resolve("digits/dit")
    assert (own.about.method, named.about.method, parent.about.method) == ("", "Mine", "DiT")
    assert named.about.paper == ""
    assert own.run_id == named.run_id == parent.run_id
    assert "about" not in own.to_json()
    assert named.to_json()["about"]["method"] == "Mine"
    assert resolve("digits/dit", ["seed=7"]).about == parent.about
