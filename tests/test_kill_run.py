"""A run that is killed at random moments ends in the bits of one that was not. `tools/kill_run.py` does it at full size."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]
SMALL = [
    "train.steps=60",
    "train.batch=16",
    "train.save_every=4",
    "train.log_every=1",
    "optimizer.warmup=0",
    "train.threads=1",
]
SMALL += [
    "evaluate.samples=30",
    "evaluate.previews=3",
    "evaluate.per_class=1",
    "evaluate.kid_subsets=2",
    "sampler.steps=4",
]


@pytest.fixture(scope="module")
def kill_run() -> ModuleType:
    spec = importlib.util.spec_from_file_location("kill_run", ROOT / "tools" / "kill_run.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_a_killed_run_ends_in_the_same_bits(kill_run: ModuleType, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sddit", str(ROOT / "recipes" / "quickstart.toml"), *SMALL]
    outcome = kill_run.disturb(command, kills=3, folder=tmp_path, seed=1)
    assert outcome.kills == 3
    assert outcome.broken == 0
    assert outcome.same_weights
    assert outcome.same_samples


def test_the_comparison_sees_one_changed_bit(kill_run: ModuleType, tmp_path: Path) -> None:
    for name in ("a", "b"):
        folder = tmp_path / name / "checkpoints" / "step-000001"
        folder.mkdir(parents=True)
        (folder / "model.safetensors").write_bytes(b"\0\1\2")
    assert kill_run.weights(tmp_path / "a") == kill_run.weights(tmp_path / "b")
    (tmp_path / "b/checkpoints/step-000001/model.safetensors").write_bytes(b"\0\1\3")
    assert kill_run.weights(tmp_path / "a") != kill_run.weights(tmp_path / "b")
