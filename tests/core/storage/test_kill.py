"""SIGKILL while checkpoints are saved: none that shows is broken, none that was acknowledged is lost."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from sddit.storage.checkpoints import Store
from sddit.storage.fault_injection import POINTS

ROOT = Path(__file__).parents[3]
KILLS = 200


CAREFUL = """
from sddit.storage.checkpoints import Store

def write(until):
    store = Store(folder, keep=2)
    store.clean()
    newest = store.latest()
    for step in range(newest.step + 1 if newest else 1, until + 1):
        store.save(step, content(step))
        say(step)
"""


def start(soak: ModuleType, program: str, folder: Path, fault: str = "") -> subprocess.Popen[str]:
    """A Python process with `folder`, `content` and `say`, without torch."""
    env = {name: value for name, value in os.environ.items() if name != "SDDIT_FAULT"}
    prelude = f"from pathlib import Path\nfolder = Path({str(folder)!r})\nsay = print\n"
    return subprocess.Popen(
        [sys.executable, "-u", "-c", prelude + soak.CONTENT + program],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=env | ({"SDDIT_FAULT": fault} if fault else {}),
    )


def test_no_kill_breaks_or_loses_a_checkpoint(soak: ModuleType, tmp_path: Path) -> None:
    """Half of them while saves are written next to the steps."""
    figures = soak.kill_writer(KILLS, tmp_path, seed=2403_17004)
    assert (figures.kills, figures.broken, figures.lost, figures.surplus) == (KILLS, 0, 0, 0)
    assert figures.good and figures.checkpoints >= KILLS
    newest = (store := Store(tmp_path, keep=2)).latest()
    assert newest is not None and store.notices == []


def test_the_same_kills_break_a_naive_writer(soak: ModuleType, tmp_path: Path) -> None:
    """The control: the harness sees broken checkpoints where a writer makes them."""
    for seed in range(KILLS // 10):
        (folder := tmp_path / str(seed)).mkdir()
        figures = soak.kill_writer(10, folder, seed, soak.NAIVE)
        if figures.broken:
            assert not figures.good
            return
    pytest.fail(f"{KILLS} kills broke no checkpoint of the naive writer: the harness is blind")


@pytest.mark.parametrize("point", [point for point in POINTS if point.startswith("ckpt.")])
def test_a_kill_at_each_point_leaves_a_run_that_continues(soak: ModuleType, tmp_path: Path, point: str) -> None:
    # The third save is hit: three files a save make the eighth one its second, and it is the first with one to prune.
    turn = {"ckpt.before_file": 8, "ckpt.after_file": 8, "ckpt.mid_prune": 1}.get(point, 3)
    stdout, stderr = start(soak, CAREFUL + "write(until=5)", tmp_path, fault=f"{point}:kill@{turn}").communicate()
    assert f"fault: {point} kill" in stderr
    assert stdout.split() == ["1", "2"]
    assert soak.broken(tmp_path) == []
    published = point in {"ckpt.after_rename", "ckpt.before_prune", "ckpt.mid_prune"}
    assert soak.visible(tmp_path)[-1] == (3 if published else 2)

    stdout, stderr = start(soak, CAREFUL + "write(until=5)", tmp_path).communicate()
    assert stdout.split() == (["4", "5"] if published else ["3", "4", "5"]), stderr
    assert soak.broken(tmp_path) == []
    assert {path.name for path in tmp_path.iterdir()} == {"step-000004", "step-000005", "index.json"}


def test_the_writer_imports_no_torch(soak: ModuleType, tmp_path: Path) -> None:
    program = (
        "\nimport json, sys, sddit.storage.run_folder, sddit.distributed.signals, sddit.runs.checkpointing\n"
        "say(json.dumps(list(sys.modules)))"
    )
    stdout, _ = start(soak, CAREFUL + program, tmp_path).communicate()
    assert {"sddit.storage.checkpoints", "sddit.storage.run_folder"} <= set(json.loads(stdout))
    assert not {"torch", "numpy", "safetensors"} & set(json.loads(stdout))
