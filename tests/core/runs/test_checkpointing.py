"""Saving in the background writes the same files; a failed save never counts, and nothing half-written remains."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent import futures
from pathlib import Path

import pytest
import torch

from sddit.errors import SdditError
from sddit.progress import Progress
from sddit.recipes.recipe import Recipe
from sddit.recipes.resolve import resolve
from sddit.runs.checkpointing import Saver
from sddit.runs.pipeline import run
from sddit.storage import fault_injection as faults
from sddit.storage.checkpoints import Store
from sddit.storage.manifest import LazyBytes
from sddit.storage.metrics_log import read_metrics
from sddit.testing.toys.plugin import TOY_PAIR_RECIPE, toy_host
from sddit.training.build import build_session
from sddit.training.state import checkpoint_files

FILES = {"state.json": b"{}", "model.safetensors": b"m" * 1000}


@pytest.fixture
def saver(tmp_path: Path) -> Saver:
    faults.reached.clear()
    return Saver(Store(tmp_path / "checkpoints", keep=2), background=True)


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """Opened at the end, so that no thread waits for ever."""
    event = threading.Event()
    yield event
    event.set()


def ended(saver: Saver) -> None:
    """Wait for the thread and ask the saver nothing."""
    if saver._saving is not None:
        futures.wait([saver._saving])


def held(gate: threading.Event) -> LazyBytes:
    """A file whose turn comes, and that waits for the gate."""

    def make() -> bytes:
        gate.wait(60)
        return b"late"

    return LazyBytes(4, make)


def test_a_save_runs_in_the_background_and_is_complete_when_waited_for(saver: Saver, gate: threading.Event) -> None:
    saver.save(1, {**FILES, "ema.safetensors": held(gate)})
    saver.poll()
    assert saver.store.steps() == []
    gate.set()
    saver.wait()
    assert saver.store.open(1).read("ema.safetensors") == b"late"


def test_at_most_one_is_under_way(saver: Saver, gate: threading.Event) -> None:
    threading.Timer(0.2, gate.set).start()
    saver.save(1, {**FILES, "ema.safetensors": held(gate)})
    saver.save(2, FILES)  # waits for the first
    assert saver.store.steps()[0] == 1
    saver.wait()
    assert saver.store.steps() == [1, 2]


@pytest.mark.parametrize("ask", ["poll", "save", "wait"])
@pytest.mark.parametrize("point", [point for point in faults.POINTS if point != "ckpt.mid_prune"])
def test_a_failed_save_is_reported_by_the_next_call(
    saver: Saver, monkeypatch: pytest.MonkeyPatch, point: str, ask: str
) -> None:
    monkeypatch.setenv("SDDIT_FAULT", f"{point}:raise:ENOSPC@1")
    saver.save(1, FILES)
    ended(saver)
    with pytest.raises(SdditError, match="SD-M610"):
        {"poll": saver.poll, "save": lambda: saver.save(2, FILES), "wait": saver.wait}[ask]()
    saver.save(2, FILES)  # it is reported once
    saver.wait()
    assert 2 in saver.store.steps()


def test_what_is_given_up_leaves_nothing_half_written(saver: Saver, gate: threading.Event) -> None:
    saver.save(1, FILES)
    saver.save(2, {**FILES, "zeta.safetensors": held(gate)})
    while not list(saver.store.folder.glob(".tmp-2-*/model.safetensors")):
        pass
    saver.abandon()
    gate.set()
    ended(saver)
    assert {path.name for path in saver.store.folder.iterdir()} == {"step-000001", "index.json"}
    with pytest.raises(SdditError):
        saver.wait()
    assert saver.store.open(1)


def test_what_is_complete_is_not_given_up(saver: Saver) -> None:
    saver.save(1, FILES)
    ended(saver)
    saver.abandon()
    saver.wait()
    assert saver.store.open(1)


MORE = "save_every = 1\nlog_every = 1\n[evaluate]\nsamples = 6\npreviews = 0\n[ema.main]\ndecay = 0.9\n"


@pytest.fixture
def recipe_of(tmp_path: Path) -> Callable[..., Recipe]:
    path, host = tmp_path / "toy.toml", toy_host()
    path.write_text(TOY_PAIR_RECIPE.replace("batch = 8\n", "batch = 8\n" + MORE))
    return lambda *overrides: resolve(path, overrides, host=host)


def test_the_files_are_those_of_a_save_within_the_step(recipe_of: Callable[..., Recipe], tmp_path: Path) -> None:
    folders = [
        run(recipe_of(f"train.save_async={mode}"), out=tmp_path / mode, device="cpu", progress=Progress()).folder
        for mode in ("false", "true")
    ]
    for step in (3, 4):
        for name in ("model", "ema", "teacher", "optimizer"):
            one, two = (folder / f"checkpoints/step-{step:06d}/{name}.safetensors" for folder in folders)
            assert one.read_bytes() == two.read_bytes()
    other = folders[0] / "checkpoints/step-000003/model.safetensors"
    assert other.read_bytes() != (folders[0] / "checkpoints/step-000004/model.safetensors").read_bytes(), "the control"


def test_copies_do_not_follow_the_weights(recipe_of: Callable[..., Recipe]) -> None:
    """What makes the files those of their own step."""
    session = build_session(recipe_of(), torch.device("cpu"))
    copied, followed = (checkpoint_files(session, {}, copy=copy)["model.safetensors"] for copy in (True, False))
    assert isinstance(copied, LazyBytes) and isinstance(followed, LazyBytes)
    before = copied.make()
    assert before == followed.make()
    next(session.student.parameters()).data.add_(1.0)
    assert copied.make() == before
    assert followed.make() != before


def test_a_run_stops_at_the_step_after_a_save_that_failed(
    recipe_of: Callable[..., Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    faults.reached.clear()
    monkeypatch.setattr(Saver, "save", joined(Saver.save))
    monkeypatch.setenv("SDDIT_FAULT", "ckpt.before_rename:raise:ENOSPC@2")
    with pytest.raises(SdditError, match="SD-M610") as stopped:
        run(recipe_of("train.save_async=true"), out=tmp_path / "runs", device="cpu", progress=Progress())
    assert stopped.value.exit_status == 7
    (folder,) = (tmp_path / "runs").iterdir()
    assert [row["step"] for row in read_metrics(folder / "metrics.jsonl")] == [1, 2, 3], "no step beyond the next one"
    assert Store(folder / "checkpoints", keep=2).steps() == [1]
    monkeypatch.delenv("SDDIT_FAULT")
    monkeypatch.undo()
    again = run(recipe_of("train.save_async=true"), out=tmp_path / "runs", device="cpu", progress=Progress())
    assert [row["step"] for row in read_metrics(again.folder / "metrics.jsonl")] == [1, 2, 3, 4]


def joined(save: Callable[..., None]) -> Callable[..., None]:
    """A save whose thread has ended when it returns: the next step is then surely after the failure."""

    def wrapped(self: Saver, *given: object) -> None:
        save(self, *given)
        ended(self)

    return wrapped


def test_a_save_that_fails_at_the_very_end_is_not_a_success(
    recipe_of: Callable[..., Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    faults.reached.clear()
    monkeypatch.setenv("SDDIT_FAULT", "ckpt.before_rename:raise:ENOSPC@4")
    with pytest.raises(SdditError, match="SD-M610"):
        run(recipe_of("train.save_async=true"), out=tmp_path / "runs", device="cpu", progress=Progress())
    (folder,) = (tmp_path / "runs").iterdir()
    assert not (folder / "report.html").exists()


BUSY = """
import sys, time
from pathlib import Path
from sddit.storage.checkpoints import Store
from sddit.runs.checkpointing import Saver
from sddit.storage.manifest import LazyBytes
from sddit.distributed.signals import StopSignals

def slow():
    print("saving", flush=True)
    time.sleep(float(sys.argv[2]))
    return b"late"

saver = Saver(Store(Path(sys.argv[1]), keep=2), background=True)
with StopSignals() as stop:
    saver.save(1, {"state.json": b"{}", "z.safetensors": LazyBytes(4, slow)})
    try:
        while not stop.requested:
            time.sleep(0.01)
        print("waiting", flush=True)
        saver.wait()
    except SystemExit:
        saver.abandon()
        raise
    raise SystemExit(stop.exit_status)
"""


@pytest.mark.parametrize(("again", "status", "left"), [(False, 143, {"step-000001", "index.json"}), (True, 130, set())])
def test_a_first_signal_waits_for_the_save_and_a_second_does_not(
    tmp_path: Path, again: bool, status: int, left: set[str]
) -> None:
    command = [sys.executable, "-c", BUSY, str(tmp_path), "600" if again else "0.3"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "saving\n"
    process.send_signal(signal.SIGTERM)
    assert process.stdout.readline() == "waiting\n"
    if again:
        process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert (process.returncode, stderr) == (status, "")
    assert {path.name for path in tmp_path.iterdir()} == left
