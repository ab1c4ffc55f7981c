"""Calls of the command line in this process, and in one of its own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from sddit.cli.app import call


@dataclass(frozen=True, slots=True)
class Said:
    """What a command printed, and its exit status."""

    status: int
    out: str
    err: str


@pytest.fixture
def sddit_run(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Said]:
    """`sddit_run("plugins", "--json")` in an empty folder, in this process."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> Said:
        capsys.readouterr()
        status = call([str(argument) for argument in arguments])
        return Said(status, *capsys.readouterr())

    return run


@pytest.fixture
def sddit_process(tmp_path: Path) -> Callable[..., Said]:
    """The same in a process of its own; `before` is Python that runs first, `after` what runs last."""

    def run(*arguments: object, before: str = "", after: str = "") -> Said:
        words = [str(argument) for argument in arguments]
        code = f"{before}\nfrom sddit.cli.app import call\nstatus = call({words!r})\n{after}\nraise SystemExit(status)"
        done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
        return Said(done.returncode, done.stdout, done.stderr)

    return run
