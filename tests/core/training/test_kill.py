"""SIGKILL while checkpoints are saved: none that shows is broken, none that was acknowledged is lost."""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sddit.faults import POINTS
from sddit.training.checkpoints import Store

KILLS = 60
SIZES = {"model.safetensors": 1_000_003, "optimizer.safetensors": 500_001, "state.json": 70}


def content(step: int) -> dict[str, bytes]:
    """What the checkpoint of a step holds, a pure function: the writers and the judge both call it."""
    return {
        name: (hashlib.sha256(f"{step}/{name}".encode()).digest() * (size // 32 + 1))[:size]
        for name, size in SIZES.items()
    }


PRELUDE = """
from __future__ import annotations
import hashlib, os, shutil, sys
from pathlib import Path

def say(text):
    os.write(1, f"{text}\\n".encode())  # one write: lines of two processes do not mix, and none is cut by a kill

"""

CAREFUL = """
from sddit.training.checkpoints import Store

def write(until):
    store = Store(folder, keep=2)
    store.clean()
    newest = store.latest()
    for step in range(newest.step + 1 if newest else 1, until + 1):
        store.save(step, content(step))
        say(step)
"""

NAIVE = """
def write(until):
    steps = sorted(int(path.name.removeprefix("step-")) for path in folder.glob("step-*"))
    for step in range(steps[-1] + 1 if steps else 1, until + 1):
        place = folder / f"step-{step:06d}"
        place.mkdir()
        for name, data in content(step).items():
            with open(place / name, "wb") as file:
                file.write(data)
        shutil.rmtree(folder / f"step-{step - 3:06d}", ignore_errors=True)
        say(step)
"""

NURSERY = """
for request in sys.stdin:
    child = os.fork()
    if child == 0:
        write(until=10**9)
    say(f"born {child}")
    os.waitpid(child, 0)
    say("dead")
"""


def start(program: str, folder: Path, fault: str = "") -> subprocess.Popen[str]:
    """A Python process with `folder` and `content`, without torch."""
    setting = f"SIZES = {SIZES!r}\nfolder = Path({str(folder)!r})\n" + inspect.getsource(content)
    env = {name: value for name, value in os.environ.items() if name != "SDDIT_FAULT"}
    return subprocess.Popen(
        [sys.executable, "-c", PRELUDE + setting + program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=env | ({"SDDIT_FAULT": fault} if fault else {}),
        start_new_session=True,
    )


@contextmanager
def nursery(writer: str, folder: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that forks one writer after another: starting Python for each would take most of the time."""
    process = start(writer + NURSERY, folder)
    try:
        yield process
    finally:
        os.killpg(process.pid, signal.SIGKILL)  # its writer too, which would go on for ever
        process.communicate()


def kill_one(process: subprocess.Popen[str], pause: float) -> int:
    """Let the nursery start a writer, SIGKILL it a while after its first save. Returns the last acknowledged step."""
    assert process.stdin is not None and process.stdout is not None
    print(file=process.stdin, flush=True)
    child, steps, killed = 0, [], False
    while (line := process.stdout.readline().split()) != ["dead"]:
        if line[:1] == ["born"]:
            child = int(line[1])
        else:
            steps.append(int(line[0]))
        if child and steps and not killed:
            time.sleep(pause)
            os.kill(child, signal.SIGKILL)
            killed = True
    assert killed
    return steps[-1]


def visible(folder: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("step-")) for path in folder.glob("step-*"))


def broken(folder: Path) -> list[int]:
    """Visible checkpoints whose files are not what their step holds, judged without the code under test."""

    def intact(step: int) -> bool:
        place = folder / f"step-{step:06d}"
        return all(
            (place / name).is_file() and (place / name).read_bytes() == data for name, data in content(step).items()
        )

    return [step for step in visible(folder) if not intact(step)]


def test_no_kill_breaks_or_loses_a_checkpoint(tmp_path: Path) -> None:
    pauses = random.Random(2403_17004)
    with nursery(CAREFUL, tmp_path) as process:
        for kill in range(KILLS):
            acknowledged = kill_one(process, pauses.uniform(0.0, 0.04))
            assert broken(tmp_path) == [], f"kill {kill}"
            assert visible(tmp_path)[-1] >= acknowledged, f"kill {kill}"
            assert len(visible(tmp_path)) <= 3, f"kill {kill}: two to keep, and one not yet pruned"
    newest = (store := Store(tmp_path, keep=2)).latest()
    assert newest is not None and newest.step >= acknowledged and store.notices == []


def test_the_same_kills_break_a_naive_writer(tmp_path: Path) -> None:
    """The control: the harness sees broken checkpoints where a writer makes them."""
    pauses = random.Random(2403_17004)
    with nursery(NAIVE, tmp_path) as process:
        for _ in range(KILLS):
            kill_one(process, pauses.uniform(0.0, 0.04))
            if broken(tmp_path):
                return
    pytest.fail(f"{KILLS} kills broke no checkpoint of the naive writer: the harness is blind")


@pytest.mark.parametrize("point", [point for point in POINTS if point.startswith("ckpt.")])
def test_a_kill_at_each_point_leaves_a_run_that_goes_on(tmp_path: Path, point: str) -> None:
    # The third save is hit: three files a save make the eighth one its second, and it is the first with one to prune.
    turn = {"ckpt.before_file": 8, "ckpt.after_file": 8, "ckpt.mid_prune": 1}.get(point, 3)
    stdout, stderr = start(CAREFUL + "write(until=5)", tmp_path, fault=f"{point}:kill@{turn}").communicate()
    assert f"fault: {point} kill" in stderr
    assert stdout.split() == ["1", "2"]
    assert broken(tmp_path) == []
    published = point in {"ckpt.after_rename", "ckpt.before_prune", "ckpt.mid_prune"}
    assert visible(tmp_path)[-1] == (3 if published else 2)

    stdout, stderr = start(CAREFUL + "write(until=5)", tmp_path).communicate()
    assert stdout.split() == (["4", "5"] if published else ["3", "4", "5"]), stderr
    assert broken(tmp_path) == []
    assert {path.name for path in tmp_path.iterdir()} == {"step-000004", "step-000005", "index.json"}


def test_the_writer_imports_no_torch(tmp_path: Path) -> None:
    program = "\nimport json, sddit.training.run_folder, sddit.training.signals\nsay(json.dumps(list(sys.modules)))"
    stdout, _ = start(CAREFUL + program, tmp_path).communicate()
    assert {"sddit.training.checkpoints", "sddit.training.run_folder"} <= set(json.loads(stdout))
    assert not {"torch", "numpy", "safetensors"} & set(json.loads(stdout))
