"""A sample of the mutants of `tools/fuzz_recipes.py`. SDDIT_FUZZ=10 takes ten times as many; the tool takes all."""

from __future__ import annotations

import importlib.util
import os
import random
import shutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from sddit.recipes import selection as components
from sddit.recipes.parsing import scan
from sddit.recipes.validation import validated

ROOT = Path(__file__).parents[1]
MORE = float(os.environ.get("SDDIT_FUZZ", "1"))


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("fuzz_recipes", ROOT / "tools" / "fuzz_recipes.py")
    assert spec is not None and spec.loader is not None
    module = sys.modules["fuzz_recipes"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def recipes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the shipped recipes, to corrupt."""
    return shutil.copytree(ROOT / "recipes", tmp_path_factory.mktemp("fuzz") / "recipes")


@pytest.fixture(scope="module")
def keys(tool: ModuleType, recipes: Path) -> list[Any]:
    return list(tool.every_key(recipes))


def of_every_kind(tool: ModuleType, keys: list[Any], each: int) -> list[Any]:
    """That many mutants of each kind."""
    chance = random.Random(17)
    made = [mutant for key in chance.sample(keys, 120) for mutant in tool.mutants(key, chance)]
    chance.shuffle(made)
    kinds = ("misspelt", "wrong kind", "out of bounds", "wrong table")
    return [mutant for kind in kinds for mutant in [m for m in made if m.kind == kind][:each]]


def test_a_corrupted_key_is_refused_by_its_name(tool: ModuleType, keys: list[Any]) -> None:
    chosen = of_every_kind(tool, keys, int(25 * MORE))
    tally = tool.judged(chosen)
    assert tally.misses == []
    assert tally.figures()["refused by name"] == len(chosen) >= 100


def test_every_key_of_every_file_is_tried(keys: list[Any], recipes: Path) -> None:
    """Exceptions: a key that every recipe using it replaces, a slot that is emptied, and the label of an arm's loss."""
    stand = {(path.resolve(), entry.key) for path in recipes.rglob("*.toml") for entry in scan(path.read_text())}
    left = {(file.name, key) for file, key in stand - {(key.file.resolve(), key.dotted) for key in keys}}
    assert left == {
        ("fashion.toml", "backbone.depth"),
        ("imagenet256-pixels.toml", "codec"),
        ("sanity.toml", "ablation.arms.leaking.loss.leaking"),
    }


def test_a_lenient_check_is_detected(tool: ModuleType, keys: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: if unknown keys are ignored silently, misspelt ones are accepted."""

    def forgiving(model: Any, given: Any, **rest: Any) -> Any:
        known = {field.alias or name for name, field in model.model_fields.items()}
        return validated(model, {key: value for key, value in given.items() if key in known}, **rest)

    monkeypatch.setattr(components, "validated", forgiving)
    chance = random.Random(0)
    (key,) = [k for k in keys if k.file.name == "digits.toml" and k.dotted == "optimizer.warmup"]
    corrupted = [mutant for mutant in tool.mutants(key, chance) if mutant.kind == "misspelt"]
    assert {verdict for verdict, _ in map(tool.judge, corrupted)} == {"accepted"}


def test_random_bytes_of_a_recipe_never_give_a_traceback(tool: ModuleType, recipes: Path) -> None:
    figures = tool.corrupt_bytes(recipes, cases=int(300 * MORE), seed=11)
    assert figures["missed"] == []
    assert {"still a recipe", "SD-R100", "SD-R102"} <= figures["outcomes"].keys()


def test_other_exceptions_are_counted(tool: ModuleType, recipes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control."""
    monkeypatch.setattr(tool.Reader, "check", lambda self: 1 / 0)
    assert tool.corrupt_bytes(recipes, cases=3, seed=0)["tracebacks"] == 3
