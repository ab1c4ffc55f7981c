"""The run folder: one writer at a time, every file whole, and a metrics log that loses and repeats no row."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from sddit.errors import SdditError, error
from sddit.storage.atomic import (
    read_file,
    remove_leftovers,
    replace_file,
    storage_errors,
    sync_folder,
    to_json,
)
from sddit.storage.lock import LOCK, _forget_locks, release_lock, take_lock

RECIPE, ENVIRONMENT, METRICS = "recipe.resolved.json", "environment.json", "metrics.jsonl"
SCORES, COST, REPORT, CHANGES = "scores.json", "cost.json", "report.html", "changes.json"
SEAL = ".sha256"  # ends the name of the file that holds the hash of the one beside it


class RunFolder:
    """The folder of one run, `runs/<recipe>-<id>`, held by one process while it is entered.

    Entering makes the folder, takes its lock, tries whether it can be written to, and removes what a killed process
    left unfinished. Raises SD-F701 if another process holds it, SD-F703 if it cannot be written to, SD-F705 if the path
    is no folder. `path` is then the real folder: a link in the way is followed once, here.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.killed = ""  # the last holder, if it ended without letting go: it was killed
        self._lock = -1

    def __enter__(self) -> Self:
        self.path = ensure_directory(self.path)
        with storage_errors(self.path / LOCK):
            self._lock, self.killed = take_lock(self.path / LOCK)
        try:
            self.write_text("probe", "written, synced, renamed")
            with storage_errors(self.path):
                (self.path / "probe").unlink()
                remove_leftovers(self.path)
        except BaseException:
            release_lock(self._lock)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, cause: BaseException | None, trace: TracebackType | None
    ) -> None:
        release_lock(self._lock)

    def write_bytes(self, name: str, data: bytes) -> Path:
        """Write a file whole or not at all. `name` may lead into a subfolder, which is made. Returns the file's path."""
        path = self.path / name
        if not path.is_relative_to(self.path) or ".." in path.parts:
            raise ValueError(f"{name!r} leads out of the run folder")
        if path.parent != self.path and self.path.is_dir():  # a run folder that has gone is not made anew
            path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, data)
        return path

    def write_text(self, name: str, text: str) -> Path:
        """Write text as UTF-8, whole or not at all."""
        return self.write_bytes(name, text.encode())

    def write_json(self, name: str, value: Any) -> Path:
        """Write JSON, whole or not at all. A NaN or an infinity is written as text."""
        return self.write_text(name, to_json(value, indent=1) + "\n")

    def write_sealed_json(self, name: str, value: Any) -> Path:
        """Write JSON, and its sha256 beside it in the form of `sha256sum`, for `refuse_changed`.

        The old seal goes first: a kill between the two files leaves one without a seal, not one that looks changed.
        """
        with storage_errors(self.path):
            (self.path / f"{name}{SEAL}").unlink(missing_ok=True)
            sync_folder(self.path)
        path = self.write_json(name, value)
        self.write_text(f"{name}{SEAL}", f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n")
        return path


def refuse_changed(path: Path) -> None:
    """SD-F704 where a file is not what was written, by the seal beside it. One without a seal is taken as it is."""
    seal = path.with_name(f"{path.name}{SEAL}")
    try:
        sealed = read_file(seal)[:64] if seal.is_file() else None
        found = hashlib.sha256(read_file(path)).hexdigest().encode()
    except OSError as fault:
        raise unreadable_error(
            path, fault.strerror or str(fault), "mend its permissions, or put a copy back"
        ) from fault
    if sealed not in (None, found):
        raise error(
            "SD-F704",
            "a file of the run folder is not what was written",
            where=str(path),
            got=f"sha256 {found[:12].decode()}...",
            expect=f"as in {seal.name}",
            fix=f"put a copy back; if you changed it yourself, delete {seal.name}",
        )


def recipe_path(folder: Path) -> Path:
    """The resolved recipe of a run folder. Raises SD-C445 for a folder that is none."""
    path = folder / RECIPE
    if not path.is_file():
        raise error("SD-C445", "not a run folder", where=str(folder), expect=f"a folder that holds {RECIPE}")
    return path


def read_json(path: Path, kind: type = dict, fix: str = "put a copy back, or start afresh with --fresh") -> Any:
    """A JSON file of a run folder. Raises SD-F704 where it is not what this program wrote, which is of this kind."""
    try:
        held = json.loads(read_file(path))
    except (OSError, ValueError, RecursionError) as fault:
        raise unreadable_error(path, str(fault), fix) from fault
    if not isinstance(held, kind):
        raise unreadable_error(path, type(held).__name__, fix)
    return held


def read_changes(folder: Path) -> list[dict[str, Any]]:
    """What --allow-change let differ on the way of a run: `key`, `from` and `to` of each. SD-F704 for anything else."""
    path = folder / CHANGES
    if not os.path.lexists(path):
        return []
    found: list[dict[str, Any]] = read_json(path, list)
    for change in found:
        if not isinstance(change, dict) or not change.keys() >= {"key", "from", "to"}:
            fix = "put a copy back, or move the file away: the report then tells of no changes"
            raise unreadable_error(path, str(change)[:80], fix)
    return found


def unreadable_error(path: Path, got: str, fix: str) -> SdditError:
    """SD-F704."""
    return error("SD-F704", "a file cannot be read", where=str(path), got=got, fix=fix)


def ensure_directory(path: Path) -> Path:
    """The real folder at `path`, made if there is none. SD-F705 where none can be made."""
    try:
        with storage_errors(path):
            path.mkdir(parents=True, exist_ok=True)
            return path.resolve(strict=True)
    except SdditError as refused:
        cause = refused.__cause__
        if not isinstance(cause, (FileExistsError, NotADirectoryError, FileNotFoundError)):
            raise
        got, fix = "a file, or a link to nothing, is in the way", "move it away, or choose another place"
        if isinstance(cause, FileNotFoundError):
            got, fix = f"the system makes no folder there ({cause.strerror})", "choose another place"
        raise error(
            "SD-F705",
            "the folder cannot be made here",
            where=str(path),
            got=got,
            expect="a folder, or a free name",
            fix=fix,
        ) from refused


os.register_at_fork(after_in_child=_forget_locks)
