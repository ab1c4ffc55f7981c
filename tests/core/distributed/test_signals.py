"""Stopping: the first signal is noted, the second one stops at once, and the statuses are the documented ones."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from sddit.distributed.signals import StopSignals
from sddit.storage.checkpoints import Store

pytestmark = pytest.mark.usefixtures("attached")

STATUS = [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGUSR1, 138), (signal.SIGHUP, 143)]

RUN = """
import sys, time
from pathlib import Path
from sddit.storage.checkpoints import Store
from sddit.storage.manifest import LazyBytes
from sddit.distributed.signals import StopSignals

store, patience, slow = Store(Path(sys.argv[1]), keep=2), float(sys.argv[2]), sys.argv[3] == "slow"

def state():
    print("saving", flush=True)
    if slow:
        time.sleep(60)
    return b"{}"

with StopSignals() as stop:
    for step in range(1, 10**6):
        print("step", flush=True)
        time.sleep(patience)
        if stop.requested:
            store.save(step, {"state.json": LazyBytes(2, state)})
            raise SystemExit(stop.exit_status)
"""


def run(folder: Path, patience: float, mode: str = "quick") -> subprocess.Popen[str]:
    """A program that saves when asked to stop, at its first step."""
    command = [sys.executable, "-c", RUN, str(folder), str(patience), mode]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "step\n"
    return process


@pytest.mark.parametrize(("number", "status"), STATUS)
def test_the_first_signal_lets_the_step_finish_and_be_saved(tmp_path: Path, number: int, status: int) -> None:
    process = run(tmp_path, patience=0.05)
    process.send_signal(number)
    _, stderr = process.communicate()
    assert (process.returncode, stderr) == (status, "")
    assert Store(tmp_path, keep=2).latest() is not None


@pytest.mark.parametrize(("number", "status"), STATUS)
def test_a_second_signal_stops_in_the_middle_of_a_save(tmp_path: Path, number: int, status: int) -> None:
    process = run(tmp_path, patience=0.05, mode="slow")
    process.send_signal(signal.SIGTERM)
    assert process.stdout is not None
    while process.stdout.readline() != "saving\n":
        pass
    assert [path.name[:5] for path in tmp_path.iterdir()] == [".tmp-"], "a save is under way"
    process.send_signal(number)
    _, stderr = process.communicate()
    assert (process.returncode, stderr) == (status, "")
    assert list(tmp_path.iterdir()) == [], "nothing half-written stays"


@pytest.mark.parametrize(("number", "status"), STATUS)
def test_what_is_noted_and_put_back(number: signal.Signals, status: int) -> None:
    before = {each: signal.getsignal(each) for each, _ in STATUS}
    with StopSignals() as stop:
        assert (stop.requested, stop.signal, stop.exit_status) == (False, None, 0)
        os.kill(os.getpid(), number)
        assert (stop.requested, stop.exit_status) == (True, status)
        with pytest.raises(SystemExit) as stopped:
            os.kill(os.getpid(), signal.SIGINT)
        assert stopped.value.code == 130
    assert {each: signal.getsignal(each) for each, _ in STATUS} == before


def test_a_process_started_to_outlive_its_terminal_does() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopSignals() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop.requested
    finally:
        signal.signal(signal.SIGHUP, before)


def test_outside_the_main_thread_nothing_is_touched() -> None:
    before = signal.getsignal(signal.SIGTERM)
    seen: list[object] = []

    def body() -> None:
        with StopSignals() as stop:
            seen.extend([signal.getsignal(signal.SIGTERM), stop.requested])

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    assert seen == [before, False]
