"""Planted faults: each known point fires, and none does anything by default."""

from __future__ import annotations

import errno
import re
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest

import sddit
from sddit.errors import SdditError
from sddit.storage import fault_injection as faults
from sddit.storage.checkpoints import Store
from sddit.storage.fault_injection import POINTS, fault_point

POINT = "ckpt.before_rename"


@pytest.fixture(autouse=True)
def nothing_reached_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SDDIT_FAULT", raising=False)
    faults.reached.clear()


def save_three(folder: Path) -> Store:
    """Three saves with one to keep: every point of the store is passed."""
    store = Store(folder, keep=1)
    for step in (1, 2, 3):
        store.save(step, {"state.json": b"{}", "model.safetensors": b"m"})
    return store


def test_the_points_known_are_the_points_in_the_source() -> None:
    sources = Path(sddit.__file__).parent.rglob("*.py")
    found = {
        name for path in sources for name in re.findall(r'fault_point\("([^"]+)"\)', path.read_text(encoding="utf-8"))
    }
    assert found == set(POINTS)


def test_all_points_are_inert_by_default(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert save_three(tmp_path).steps() == [3]
    for name in POINTS:
        fault_point(name)
    assert capsys.readouterr() == ("", "") and not faults.reached


@pytest.mark.parametrize("point", [name for name in POINTS if name.startswith("ckpt.")])
def test_each_point_of_a_save_fires(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], point: str
) -> None:
    monkeypatch.setenv("SDDIT_FAULT", f"{point}:raise:ENOSPC")
    with pytest.raises(SdditError, match="SD-M610"):
        save_three(tmp_path)
    assert faults.reached[point] == 1
    assert capsys.readouterr().err == f"fault: {point} raise:ENOSPC\n"


def test_a_raised_error_has_the_errno(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SDDIT_FAULT", f"{POINT}:raise:EROFS")
    with pytest.raises(OSError) as raised:
        fault_point(POINT)
    assert raised.value.errno == errno.EROFS


def test_kill_is_sigkill() -> None:
    program = f"from sddit.storage.fault_injection import fault_point; fault_point({POINT!r}); print('alive')"
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, env={"SDDIT_FAULT": f"{POINT}:kill"})
    assert (done.returncode, done.stdout, done.stderr) == (-9, "", f"fault: {POINT} kill\n")


def test_a_turn_is_one_turn(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("SDDIT_FAULT", f"{POINT}:raise:EIO@3")
    for turn in range(1, 6):
        with pytest.raises(OSError) if turn == 3 else nullcontext():
            fault_point(POINT)
        fault_point("ckpt.after_rename")
    assert faults.reached == {POINT: 5}
    assert capsys.readouterr().err == f"fault: {POINT} raise:EIO\n"


@pytest.mark.parametrize(
    ("text", "expect"),
    [
        ("ckpt.before_renam:kill", "did you mean 'ckpt.before_rename'"),
        (f"{POINT}:explode", "with action kill or raise:ERRNO"),
        (f"{POINT}:raise:ENOSUCH", "raise:ERRNO"),
        (f"{POINT}:raise:", "raise:ERRNO"),
        (f"{POINT}:kill@0", "name:action"),
        (POINT, "name:action"),
        ("", "one of ckpt.after_file"),
    ],
)
def test_a_fault_that_cannot_be_planted_is_refused(monkeypatch: pytest.MonkeyPatch, text: str, expect: str) -> None:
    monkeypatch.setenv("SDDIT_FAULT", text)
    with pytest.raises(SdditError, match="SD-R160") as refused:
        fault_point("ckpt.after_file")
    assert expect in refused.value.problems[0].expect
