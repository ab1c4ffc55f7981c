"""Run the Slurm script of the docs with a stand-in for `sddit-run` and for Slurm."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "docs" / "examples" / "train.sbatch"
RUN = """#!/bin/bash
trap 'sleep 0.3; echo saved >> "$LOG"; exit 138' USR1
echo "$@" >> "$LOG"
for _ in $(seq 100); do sleep 0.05; [ "$END" ] && exit "$END"; done
"""
SLURM = '#!/bin/bash\necho "scontrol $@" >> "$LOG"\n'


def submit(folder: Path, end: str = "") -> subprocess.Popen[str]:
    """Start the script as a job. `end`: the status with which the run ends on its own; empty: it trains on."""
    for name, text in (("sddit-run", RUN), ("scontrol", SLURM)):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    given = {"SDDIT_DATA": "/data", "SLURM_JOB_ID": "77", "LOG": str(folder / "log"), "END": end}
    environment = {**os.environ, **given, "PATH": f"{folder}:{os.environ['PATH']}"}
    words = ["bash", str(SCRIPT), "mine.toml", "train.batch=8"]
    return subprocess.Popen(words, env=environment, text=True)


def wait_for(log: Path) -> None:
    for _ in range(100):
        if log.exists():
            return
        time.sleep(0.05)
    pytest.fail("the run did not start")


def test_a_job_whose_time_is_up_saves_and_is_queued_again(tmp_path: Path) -> None:
    job = submit(tmp_path)
    wait_for(tmp_path / "log")
    job.send_signal(signal.SIGUSR1)
    assert job.wait(20) == 138
    started, *then = (tmp_path / "log").read_text().splitlines()
    assert started == "mine.toml train.batch=8 --device cuda --nproc 8 --out /data/runs"
    assert then == ["saved", "scontrol requeue 77"]


@pytest.mark.parametrize("status", [0, 4, 143])
def test_a_job_that_ends_otherwise_is_not(tmp_path: Path, status: int) -> None:
    assert submit(tmp_path, str(status)).wait(20) == status
    assert (tmp_path / "log").read_text().count("\n") == 1


def test_a_job_without_a_folder_of_data_starts_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["bash", str(SCRIPT), "mine.toml"]
    environment = {key: value for key, value in os.environ.items() if key != "SDDIT_DATA"}
    said = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    assert said.returncode != 0 and "export SDDIT_DATA=FOLDER" in said.stderr
