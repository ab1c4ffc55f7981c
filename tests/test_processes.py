"""A run of two processes by one command: stopped, killed, failing, hanging, and resumed by one process."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from sddit.storage.checkpoints import Store
from sddit.storage.metrics_log import read_metrics

PLUGIN = '''
import os, signal, time
from sddit import hookimpl
from sddit.interfaces import LossParams, Needs, Want
from sddit.losses import LossTerm

class FaultParams(LossParams):
    def needs(self):
        return Needs(student=Want(output=True))

def fail():
    raise ValueError("corrupted")

def hang():
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    time.sleep(600)

FAULTS = {
    "fail": fail,
    "hang": hang,
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "slow": lambda: time.sleep(1),
}

class Fault(LossTerm):
    """At the step and on the rank that FAULT names, what it names; else nothing."""

    def __init__(self, params, **_):
        super().__init__()
        open(f"pid-{os.environ.get('RANK', '0')}", "w").write(str(os.getpid()))

    def forward(self, ctx, views, outputs):
        rank, step, what = (os.environ.get("FAULT") or "-1,-1,none").split(",")
        if os.environ.get("RANK") == rank and ctx.step >= int(step):
            FAULTS[what]()
        return 1e-9 * outputs["student"].raw.flatten(1).mean(1)

@hookimpl
def register_losses(registry):
    registry.add("fault", Fault, params=FaultParams, summary="What goes wrong in tests.")
'''
RECIPE = """
plugins = ["./fault.py"]
[dataset]
name = "digits"
[backbone]
name = "dit"
depth = 1
width = 16
heads = 2
patch = 4
[noise_schedule]
name = "edm"
sigma_data = "measured"
[attention]
name = "eager"
[pair_sampler]
name = "single"
[loss.denoise]
name = "denoising"
[loss.fault]
name = "fault"
[optimizer]
name = "adamw"
lr = 1e-3
[sampler]
name = "heun"
steps = 3
[guidance]
name = "none"
[train]
steps = 9
batch = 8
save_every = 2
log_every = 1
timeout = 4.0
[evaluate]
samples = 9
previews = 1
per_class = 1
"""


@pytest.fixture
def start(tmp_path: Path) -> Callable[..., subprocess.Popen[str]]:
    """`start("1,3,kill", 2)` runs the recipe on two processes and kills rank 1 after step 3."""
    (tmp_path / "fault.py").write_text(PLUGIN)
    (tmp_path / "faulty.toml").write_text(RECIPE)

    def begin(fault: str, nproc: int) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "sddit", "faulty.toml", "--nproc", str(nproc)],
            cwd=tmp_path,
            env={**os.environ, "FAULT": fault, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return begin


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Return the exit status of a command and its error output."""
    _, said = process.communicate(timeout=240)
    assert "Traceback" not in said
    return process.returncode, said


@pytest.mark.slow
def test_each_end_of_a_run_of_two_processes_is_reported_once_and_can_be_resumed(
    start: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    stopped = start("1,4,slow", 2)
    while not (log := [*tmp_path.glob("runs/*/metrics.jsonl")]) or len(log[0].read_text().splitlines()) < 3:
        assert stopped.poll() is None
        time.sleep(0.1)
    stopped.send_signal(signal.SIGUSR1)
    assert ended(stopped)[0] == 138
    run = log[0].parent
    store = Store(run / "checkpoints", keep=2)
    saved = store.steps()[-1]
    assert saved == read_metrics(log[0])[-1]["step"] < 9
    assert not [*run.glob("failure-*")]

    status, said = ended(start("1,5,kill", 2))
    assert status == 9 and "SD-X801: rank 1 was killed by SIGKILL" in said and said.count("error SD-") == 1
    assert json.loads((run / "failure-0.json").read_text())["code"] == "SD-X801"

    status, said = ended(start("1,5,fail", 2))
    assert (
        status == 3 and "error SD-P221" in said and "rank:   1, after step 5" in said and said.count("error SD-") == 1
    )
    noted = json.loads((run / "failure-1.json").read_text())
    assert (noted["code"], noted["exit"], noted["step"]) == ("SD-P221", 3, 5)

    status, said = ended(start("1,6,hang", 2))
    assert status == 9 and "SD-X802: rank 1 did not answer for 4 s" in said and said.count("error SD-") == 1

    assert ended(start("", 1))[0] == 0
    assert [row["step"] for row in read_metrics(run / "metrics.jsonl")] == list(range(1, 10))
    assert (run / "report.html").is_file()
    assert not [*run.glob("failure-*")]


@pytest.mark.slow
def test_no_process_outlives_its_launcher(start: Callable[..., subprocess.Popen[str]], tmp_path: Path) -> None:
    launcher = start("1,4,slow", 2)
    while not (log := [*tmp_path.glob("runs/*/metrics.jsonl")]) or len(log[0].read_text().splitlines()) < 3:
        assert launcher.poll() is None
        time.sleep(0.1)
    ranks = [int((tmp_path / f"pid-{rank}").read_text()) for rank in range(2)]
    assert all(map(alive, ranks))
    launcher.kill()
    deadline = time.monotonic() + 60
    while any(map(alive, ranks)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(map(alive, ranks))
    status, said = ended(launcher)
    assert status == -signal.SIGKILL and "error SD-X804: the launcher of this run ended" in said
    assert ended(start("", 1))[0] == 0
    assert [row["step"] for row in read_metrics(log[0])] == list(range(1, 10))


def alive(pid: int) -> bool:
    """Return whether a process runs; False for a zombie."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False
