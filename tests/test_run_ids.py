"""Hold the run ids of the shipped recipes: a later version finds the runs of an earlier one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pydantic import Field
from stand_ins import RECIPES, stand_ins

from sddit.ablations.planning.arms import expand
from sddit.interfaces import Params
from sddit.interfaces.params import settings_json
from sddit.plugins.host import host
from sddit.recipes.merge import load
from sddit.recipes.resolve import resolve

STORED = Path(__file__).parent / "fixtures" / "run_ids.json"
"""{recipe: run id, or {arm: run id}}. An id changes when the bits of a run do, and then `sddit.__numerics__` does."""


def ids_of(path: Path) -> str | dict[str, str]:
    """Return the ids of a shipped recipe; its data and the run that it starts from need not be here."""
    overrides = stand_ins(path)
    if "ablations" not in path.parts:
        return resolve(path, overrides).run_id
    return {arm.label: arm.recipe.run_id for arm in expand(load(str(path), overrides)).arms}


def all_ids() -> dict[str, str | dict[str, str]]:
    paths = [path for path in RECIPES.rglob("*.toml") if path.parent.name != "base"]
    paths = sorted(path for path in paths if not path.is_relative_to(RECIPES / "ablations" / "imagenet256"))
    return {str(path.relative_to(RECIPES)): ids_of(path) for path in paths}


STORED_IDS: dict[str, str | dict[str, str]] = json.loads(STORED.read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", STORED_IDS)
def test_a_shipped_recipe_keeps_its_run_id(name: str) -> None:
    assert ids_of(RECIPES / name) == STORED_IDS[name]


def test_the_list_has_every_shipped_recipe() -> None:
    """A new recipe is added to the list: `json.dumps(all_ids(), indent=1)`."""
    assert sorted(all_ids()) == sorted(STORED_IDS)


def test_the_id_has_the_revision_of_the_numbers_and_not_the_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sddit.__version__", "9.9.9")
    for row in (row for row in host().rows.values() if row.builtin):
        monkeypatch.setattr(row, "version", "9.9.9")
    quickstart = RECIPES / "quickstart.toml"
    assert resolve(quickstart).run_id == STORED_IDS["quickstart.toml"]
    monkeypatch.setattr("sddit.__numerics__", "2")
    raised = resolve(quickstart)
    assert raised.run_id != STORED_IDS["quickstart.toml"]
    assert set(raised.plugin_digests.values()) == {"sddit 2"}


def test_another_seed_has_another_id() -> None:
    assert resolve(RECIPES / "quickstart.toml", ["seed=1"]).run_id != STORED_IDS["quickstart.toml"]


class Inner(Params):
    width: int = Field(4, description="Width.")
    later: int = Field(2, description="Later.", json_schema_extra={"omit_default": True})


class Settings(Params):
    size: int = Field(8, description="Size.")
    later: str | None = Field(None, description="Later.", json_schema_extra={"omit_default": True})
    scope: tuple[str, ...] = Field(("a",), description="Later.", json_schema_extra={"omit_default": True})
    workers: int = Field(1, description="Workers.", json_schema_extra={"free": True})
    inner: Inner = Field(Inner(), description="Inner.")


def test_marked_keys_are_not_part_of_the_id() -> None:
    def identity(**settings: object) -> dict[str, object]:
        return settings_json(Settings(**settings), free=False)  # type: ignore[arg-type]

    plain = {"size": 8, "inner": {"width": 4}}
    assert identity() == identity(workers=4) == identity(later=None, scope=("a",), inner=Inner(later=2)) == plain
    assert identity(later="x", scope=("b",), inner=Inner(later=3)) == {
        **plain,
        "later": "x",
        "scope": ["b"],
        "inner": {"width": 4, "later": 3},
    }
    assert settings_json(Settings()).keys() == Settings.model_fields.keys()
