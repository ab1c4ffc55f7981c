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
    assert "| `digits/dit` | 478 k | 1.00 | `single`, `denoising` |" in section


def test_recipes_stand_from_small_to_large_and_a_second_stage_after_the_first(entries: list[Any]) -> None:
    names = [entry.name for entry in entries]
    sd_dit = ["quickstart", "fashion", "emoji", "emoji-latent", "imagenet256/sd-dit-xl2"]
    assert [name for name in names if name in sd_dit] == sd_dit
    for folder, size in (("digits", ""), ("emoji", ""), ("imagenet256", "-xl2")):
        for first, second in (("maskdit", "maskdit{}-tune"), ("self-transcendence", "self-transcendence-guided{}")):
            assert names.index(f"{folder}/{first}{size}") + 1 == names.index(f"{folder}/{second.format(size)}")


def test_a_cost_is_relative_to_plain_dit_of_the_same_size_and_a_dash_without_one(
    tool: dict[str, Any], entries: list[Any]
) -> None:
    costs = {entry.name: tool["cost_over_baseline"](entry) for entry in entries}
    assert costs["imagenet256/dit-edm-xl2"] == "1.00"
    assert float(costs["imagenet256/maskdit-xl2-tune"]) > 1 > float(costs["imagenet256/maskdit-xl2"])
    assert {name for name, cost in costs.items() if cost == "–"} == {"fashion", "emoji-latent", "imagenet256/jit-b16"}


def test_a_text_is_written_once_for_recipes_that_state_the_same(tool: dict[str, Any], entries: list[Any]) -> None:
    group = [entry for entry in entries if entry.name in ("digits/mdt", "emoji/mdt", "imagenet256/mdt-xl2")]
    rows = list(tool["section"]("MDT", group))[-3:]
    assert rows[1].endswith("| as above | as above |")
    assert "as above" not in rows[0] + rows[2]


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
