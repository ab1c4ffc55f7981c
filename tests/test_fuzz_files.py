"""A sample of the damages of `tools/fuzz_files.py`.

SDDIT_FUZZ=10 takes ten times as many; the tool takes some of each file.
"""

from __future__ import annotations

import importlib.util
import os
import random
import sys
from pathlib import Path
from types import ModuleType

import pytest

from sddit.errors import SdditError
from sddit.exchange.exporting import export_run
from sddit.progress import Progress
from sddit.recipes.recipe import Recipe
from sddit.recipes.resolve import resolve
from sddit.runs.pipeline import run
from sddit.storage.run_folder import SEAL

ROOT = Path(__file__).parents[1]
MORE = float(os.environ.get("SDDIT_FUZZ", "1"))
TINY = ["train.steps=4", "train.batch=4", "train.save_every=2", "train.log_every=1", "train.threads=1"]
TINY += ["optimizer.warmup=0", "evaluate.samples=4", "evaluate.features=[]", "evaluate.previews=1", "sampler.steps=2"]
TINY += ["evaluate.per_class=1", "backbone.depth=1", "backbone.width=8", "backbone.heads=1", "backbone.decoder.depth=1"]
TINY += ["backbone.decoder.width=8", "backbone.decoder.heads=1", "loss.discrimination.prototypes=8"]


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("fuzz_files", ROOT / "tools" / "fuzz_files.py")
    assert spec is not None and spec.loader is not None
    module = sys.modules["fuzz_files"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return resolve(ROOT / "recipes" / "quickstart.toml", TINY)


@pytest.fixture(scope="module")
def finished(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with two checkpoints."""
    return run(recipe, out=tmp_path_factory.mktemp("runs"), device="cpu", progress=Progress()).folder


@pytest.fixture(scope="module")
def exported(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_run(finished, out=tmp_path_factory.mktemp("exports") / "exported").folder


def test_damage_to_a_run_folder_is_refused_noticed_or_of_no_effect(
    tool: ModuleType, finished: Path, recipe: Recipe
) -> None:
    chance = random.Random(int(5 * MORE))
    figures = tool.fuzz(finished, tool.readers_of_a_run(recipe), each=4, chance=chance, most=int(10 * MORE))
    assert figures.misses == []
    assert figures.to_json()["verdicts"]["caught"] > 0


def test_damage_to_a_checkpoint_a_recipe_or_a_config_is_always_reported(
    tool: ModuleType, finished: Path, exported: Path
) -> None:
    checkpoints = sorted(str(path.relative_to(finished)) for path in finished.glob("checkpoints/step-*/*"))
    assert len(checkpoints) == 12
    of_run = (finished, [tool.as_a_model, tool.as_one_of_all], [*checkpoints, "recipe.resolved.json"])
    of_export = (exported, [tool.as_a_model], ["config.json", "model.safetensors"])
    for folder, readers, names in (of_run, of_export):
        expected = [reader(folder).found for reader in readers]
        for name in names:
            size = (folder / name).stat().st_size
            for damage in [*tool.damages(size, 3, random.Random(0))][:: 1 if MORE > 1 else 2]:
                assert tool.judge(folder, name, damage, readers, expected)[0] == "caught", (name, damage)


def test_a_file_without_its_seal_changes_silently(tool: ModuleType, finished: Path) -> None:
    """Negative control: without its seal, a changed digit of the recipe changes the samples, and is detected."""
    seal = finished / f"recipe.resolved.json{SEAL}"
    kept = seal.read_bytes()
    seal.unlink()
    try:
        data = (finished / "recipe.resolved.json").read_bytes()
        at = data.index(b'"rho": 7.0') + len(b'"rho": ')
        expected = [tool.as_a_model(finished).found]
        damage = tool.Damage("flip", 8 * at + 1)  # 7 becomes 5
        assert damage.of(data)[at : at + 3] == b"5.0"
        assert tool.judge(finished, "recipe.resolved.json", damage, [tool.as_a_model], expected)[0] == "silent"
    finally:
        seal.write_bytes(kept)


def test_what_is_raised_otherwise_counts_as_a_traceback(tool: ModuleType, exported: Path) -> None:
    def broken(folder: Path) -> object:
        raise ZeroDivisionError

    def refusing(folder: Path) -> object:
        return resolve(folder / "nothing.toml")

    for reader, verdict in ((broken, "traceback"), (refusing, "caught")):
        assert tool.judge(exported, "config.json", tool.Damage("cut", 0), [reader], [""])[0] == verdict
    with pytest.raises(SdditError):
        refusing(exported)
