"""A world of one row's own: an empty folder, the command line in this process, and faults that go when they are
lifted.
"""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import pytest

from sddit.cli.app import call
from sddit.plugins.host import Host, using_host
from sddit.storage.checkpoints import Store
from sddit.testing.toys import plugin as toys

HERE = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class CommandResult:
    """Output and exit status of a command."""

    status: int
    stdout: str
    stderr: str


def toys_and_standard() -> Host:
    """Return a host with the toys and the standard plugin."""
    host = Host(builtins=("sddit",))
    host.add("toy", toys)
    return host


@dataclass(slots=True)
class World:
    """The folder in which a row is provoked. It holds `toy.toml`; run folders go to `runs`."""

    folder: Path
    patch: pytest.MonkeyPatch  # undone before the unfaulted command
    capture: pytest.CaptureFixture[str]
    host: Callable[[], Host] = toys_and_standard  # a fresh one for each command, as a process has
    lock: IO[str] | None = None  # of another process, until faults are lifted

    def lift(self) -> None:
        """Take all faults away that were patched in."""
        self.patch.undo()
        if self.lock is not None:
            self.lock.close()

    def call(self, line: str) -> CommandResult:
        """One command line of sddit-run."""
        self.capture.readouterr()
        with using_host(self.host()):
            try:
                status = call([found for word in shlex.split(line) for found in expanded(word)])
            except SystemExit as stopped:
                status = int(stopped.code or 0)
        return CommandResult(status, *self.capture.readouterr())

    def run(self) -> Path:
        """Return the only run folder."""
        (folder,) = self.runs()
        return folder

    def runs(self) -> list[Path]:
        """All run folders."""
        return sorted(path for path in Path("runs").glob("*") if path.is_dir())

    def edit(self, old: str, new: str, name: str = "toy.toml") -> None:
        """Replace text of a file that holds it."""
        path = self.folder / name
        text = path.read_text(encoding="utf-8")
        assert old in text, f"{name} does not hold {old!r}"
        path.write_text(text.replace(old, new, 1), encoding="utf-8")

    def weights(self, run: Path) -> bytes:
        """Return the newest weights of a run, after checking their manifest."""
        checkpoint = Store(run / "checkpoints", keep=2).latest(move_broken=False)
        assert checkpoint is not None
        return checkpoint.read("model.safetensors")


def expanded(word: str) -> list[str]:
    """Expand a word with * as a shell does."""
    return sorted(map(str, Path().glob(word))) if "*" in word else [word]


@pytest.fixture
def world(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, attached: None
) -> Iterator[World]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "world"
    folder.mkdir()
    monkeypatch.chdir(folder)
    shutil.copy(HERE / "toy.toml", folder)
    with pytest.MonkeyPatch.context() as patch:
        yield World(folder, patch, capsys)
