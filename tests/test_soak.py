"""A run that is killed again and again ends in the bits, the images and the log of one that was not."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]
STEPS, KILLS = 40, 12


def test_a_killed_run_ends_in_the_same_bits(soak: ModuleType, tmp_path: Path) -> None:
    """Every other start saves next to its steps."""
    recipe = (str(ROOT / "recipes" / "quickstart.toml"), *soak.SMALL, f"train.steps={STEPS}")
    figures = soak.kill_run(recipe, STEPS, KILLS, tmp_path, seed=1)
    assert (figures.kills, figures.broken, figures.lost) == (KILLS, 0, 0)
    assert (figures.same_weights, figures.same_samples, figures.same_log) == (True, True, True)
    assert figures.good


def test_the_kills_lie_all_over_the_run(soak: ModuleType) -> None:
    planned = list(soak.moments(KILLS, STEPS, random.Random(0)))
    assert len(planned) == KILLS
    assert (planned.count("at the start"), planned.count(f"after step {STEPS}")) == (2, 2)
    inside = [int(moment.split()[-1]) for moment in planned if moment.startswith("in step")]
    assert inside == sorted(inside) and inside[0] <= STEPS / 8 < STEPS * 7 / 8 - 2 <= inside[-1] < STEPS


@pytest.fixture
def finished(soak: ModuleType, tmp_path: Path) -> Path:
    """What the comparison looks at, in a folder like that of a run."""
    for name, data in {
        "checkpoints/step-000001/model.safetensors": b"\0\1\2",
        "samples/samples.npz": b"\3\4",
        "metrics.jsonl": b'{"step": 1, "loss": 0.5, "seconds": 2}\n',
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(data)
    return tmp_path


@pytest.mark.parametrize(
    ("look", "name", "data"),
    [
        ("weights", "checkpoints/step-000001/model.safetensors", b"\0\1\3"),
        ("image_hashes", "samples/samples.npz", b"\3\5"),
        ("rows", "metrics.jsonl", b'{"step": 1, "loss": 0.25, "seconds": 2}\n'),
    ],
)
def test_the_comparison_sees_one_changed_bit(
    soak: ModuleType, finished: Path, look: str, name: str, data: bytes
) -> None:
    before = getattr(soak, look)(finished)
    assert getattr(soak, look)(finished) == before
    (finished / name).write_bytes(data)
    assert getattr(soak, look)(finished) != before


def test_clocks_are_not_compared(soak: ModuleType, finished: Path) -> None:
    before = soak.rows(finished)
    (finished / "metrics.jsonl").write_bytes(b'{"step": 1, "loss": 0.5, "seconds": 3}\n')
    assert soak.rows(finished) == before


def test_a_stopped_run_is_saved_each_time(soak: ModuleType, tmp_path: Path) -> None:
    recipe = (str(ROOT / "recipes" / "quickstart.toml"), *soak.SMALL)
    figures = soak.stop_run(recipe, 2, tmp_path, seed=1)
    assert (figures.stops, figures.saved) == (2, 2) and figures.good
    assert 0 < figures.median_seconds <= figures.largest_seconds and figures.milliseconds_per_step > 0


CARELESS = """
import pathlib, time

def live(log, *words):
    place = pathlib.Path(words[-1]) / "run"
    place.mkdir(parents=True, exist_ok=True)
    with open(place / "metrics.jsonl", "a") as file:
        file.write(json.dumps({"step": 10**6, "seconds": 1}) + "\\n")
    time.sleep(60)
"""


def test_a_run_that_a_signal_just_ends_is_not_saved(soak: ModuleType, tmp_path: Path) -> None:
    figures = soak.stop_run((), 1, tmp_path, seed=1, program=CARELESS)
    assert (figures.stops, figures.saved, figures.good) == (1, 0, False)


def test_a_program_that_ends_on_its_own_is_not_a_kill(soak: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="ended on its own, with status 3"):
        soak.kill_writer(1, tmp_path, 0, "def live(*words):\n    raise SystemExit(3)")
    with pytest.raises(RuntimeError, match="SD-R1"):
        soak.kill_run((str(tmp_path / "none.toml"),), 1, 1, tmp_path, 0)
    with pytest.raises(RuntimeError, match="SD-R1"):
        soak.stop_run((str(tmp_path / "none.toml"),), 1, tmp_path, 0)


def test_many_steps_are_measured(soak: ModuleType) -> None:
    """In a process of its own: the figures are those of the process."""
    command = [sys.executable, str(ROOT / "tools" / "soak.py"), "--steps", "40", "train.batch=4"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    figures = json.loads(done.stdout.splitlines()[-1])
    assert set(figures) == {"steps"} and figures["steps"]["good"] is True
    assert figures["steps"]["steps"] == 40 and figures["steps"]["mebibytes"] > 50
    assert figures["steps"]["milliseconds_per_step"] > 0
    assert "step 40 of 40" in done.stdout
