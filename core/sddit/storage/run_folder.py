"""Read and write the files of a run folder. It has one writer at a time, and its files are replaced atomically."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Self

from sddit.errors import SdditError, error
from sddit.storage import atomic
from sddit.storage.lock import LOCK, release_lock, take_lock

RECIPE, ENVIRONMENT, METRICS = "recipe.resolved.json", "environment.json", "metrics.jsonl"
SCORES, COST, REPORT, CHANGES = "scores.json", "cost.json", "report.html", "changes.json"
SAMPLES, LATENTS = "samples/samples.npz", "samples/latents.safetensors"
RUN_IDS = "run_ids"  # key of the resolved recipe of a run folder
ASIDE_PREFIX = "aside-"  # of the folders to which --fresh moves the contents of a run folder
ASIDE = ".aside.json"  # which of them is being filled, and with what; continued by the next command
SEAL = ".sha256"  # suffix of the file with the sha256 of another file


class RunFolder:
    """The folder of one run, `runs/<recipe>-<id>`, locked by one process while it is entered.

    Entering creates the folder, locks it, checks that it is writable, removes the temporary files of a killed process,
    and completes a --fresh that was interrupted. Raises SD-F701 if another process holds the lock, SD-F703 if the
    folder is not writable, SD-F705 if the path is not a folder. Links in `path` are resolved once, on entering.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.killed = ""  # the previous holder of the lock, if it exited without releasing it
        self._lock = -1

    def __enter__(self) -> Self:
        self.path = ensure_directory(self.path)
        with atomic.storage_errors(self.path / LOCK):
            self._lock, self.killed = take_lock(self.path / LOCK)
        try:
            self.write_text("probe", "written, synced, renamed")
            with atomic.storage_errors(self.path):
                (self.path / "probe").unlink()
                atomic.remove_leftovers(self.path)
                finish_setting_aside(self.path)
        except BaseException:
            release_lock(self._lock)
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        release_lock(self._lock)

    def write_bytes(self, name: str, data: bytes) -> Path:
        """Write a file atomically and return its path. `name` may include a subfolder, which is created."""
        return self.write_file(name, lambda file: file.write(data))

    def write_file(self, name: str, write: Callable[[BinaryIO], object]) -> Path:
        """Write a file as `write_bytes` does, with what `write` writes to the file that it is given."""
        path = self.path / name
        if not path.is_relative_to(self.path) or ".." in path.parts:
            raise ValueError(f"{name!r} leads out of the run folder")
        if path.parent != self.path and self.path.is_dir():  # a deleted run folder is not created again
            path.parent.mkdir(parents=True, exist_ok=True)
        atomic.write_file(path, write)
        return path

    def write_text(self, name: str, text: str) -> Path:
        """Write text as UTF-8, atomically."""
        return self.write_bytes(name, text.encode())

    def write_json(self, name: str, value: Any) -> Path:
        """Write JSON atomically. NaN and infinities are written as text."""
        return self.write_text(name, atomic.to_json(value, indent=1) + "\n")

    def write_sealed_json(self, name: str, value: Any) -> Path:
        """Write JSON, and its sha256 to a second file in the format of `sha256sum`, for `refuse_changed`.

        The old hash is removed first: after a kill between the two writes, the file has no hash rather than a wrong
        one.
        """
        with atomic.storage_errors(self.path):
            (self.path / f"{name}{SEAL}").unlink(missing_ok=True)
            atomic.sync_folder(self.path)
        path = self.write_json(name, value)
        self.write_text(f"{name}{SEAL}", f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n")
        return path

    def set_aside(self) -> None:
        """Move the contents into a new `aside-N` in the folder. Nothing is deleted.

        A list of what to move is written first. From then on, the next command completes an interrupted move.
        """
        names = sorted(path.name for path in self.path.iterdir() if path.name != LOCK)
        contents = [name for name in names if not name.startswith(ASIDE_PREFIX)]
        if not contents:
            return
        suffixes = [name.removeprefix(ASIDE_PREFIX) for name in names if name.startswith(ASIDE_PREFIX)]
        number = 1 + max((int(suffix) for suffix in suffixes if suffix.isdecimal()), default=0)
        self.write_json(ASIDE, {"to": f"{ASIDE_PREFIX}{number}", "contents": contents})
        with atomic.storage_errors(self.path):
            finish_setting_aside(self.path)


def finish_setting_aside(folder: Path) -> None:
    """Move what `ASIDE` lists. The report goes first, then the recipe: what is left is then not read as a run."""
    if not os.path.lexists(folder / ASIDE):
        return
    fix = f"move {ASIDE} away; compare the folder with the newest {ASIDE_PREFIX}N in it"
    listed = read_json(folder / ASIDE, fix=fix)
    to, contents = listed.get("to"), listed.get("contents")
    names = [to, *contents] if isinstance(contents, list) else [None]
    if not all(isinstance(name, str) and name == Path(name).name for name in names):
        raise unreadable_error(folder / ASIDE, str(listed)[:80], fix)
    aside = folder / str(to)
    aside.mkdir(exist_ok=True)
    for name in sorted(contents, key=lambda name: ([REPORT, RECIPE, name].index(name), name)):
        if os.path.lexists(folder / name):
            (folder / name).rename(free_name(aside, name))
    atomic.sync_folder(aside)
    (folder / ASIDE).unlink()
    atomic.sync_folder(folder)


def free_name(folder: Path, name: str) -> Path:
    """Return a path in a folder that nothing has yet."""
    further = (folder / f"{name}.{number}" for number in itertools.count(2))
    return next(path for path in itertools.chain([folder / name], further) if not os.path.lexists(path))


def refuse_changed(path: Path) -> None:
    """Raise SD-F704 if a file differs from the sha256 stored with it. A file without one is accepted."""
    seal = path.with_name(f"{path.name}{SEAL}")
    with unreadable_errors(path):
        sealed = atomic.read_file(seal)[:64] if seal.is_file() else None
        found = hashlib.sha256(atomic.read_file(path)).hexdigest().encode()
    if sealed not in (None, found):
        raise error(
            "SD-F704",
            "a file of the run folder is not what was written",
            where=str(path),
            got=f"sha256 {found[:12].decode()}...",
            expect=f"as in {seal.name}",
            fix=f"restore it from a backup; if you changed it yourself, delete {seal.name}",
        )


def recipe_path(folder: Path) -> Path:
    """Return the path of the resolved recipe of a run folder. Raises SD-C445 if the folder is not one."""
    path = folder / RECIPE
    if not path.is_file():
        raise error("SD-C445", "not a run folder", where=str(folder), expect=f"a folder that holds {RECIPE}")
    return path


def read_json(path: Path, kind: type = dict, fix: str = "restore it from a backup, or start over with --fresh") -> Any:
    """Read a JSON file of a run folder. Raises SD-F704 if it is unreadable or its value is not of type `kind`."""
    try:
        value = json.loads(atomic.read_file(path))
    except (OSError, ValueError, RecursionError) as fault:
        raise unreadable_error(path, str(fault), fix) from fault
    if not isinstance(value, kind):
        raise unreadable_error(path, type(value).__name__, fix)
    return value


def read_changes(folder: Path) -> list[dict[str, Any]]:
    """Read the changes permitted by --allow-change: `key`, `from` and `to` of each. Raises SD-F704 if damaged."""
    path = folder / CHANGES
    if not os.path.lexists(path):
        return []
    found: list[dict[str, Any]] = read_json(path, list)
    for change in found:
        if not isinstance(change, dict) or not change.keys() >= {"key", "from", "to"}:
            fix = "restore the file from a backup, or move it away: the report then shows no changes"
            raise unreadable_error(path, str(change)[:80], fix)
    return found


def recorded_ids(folder: Path) -> tuple[str, ...]:
    """Return the ids of the run in a folder: the present one, then those it had before --allow-change.

    None are recorded in a folder of an earlier version. Raises SD-F704 if the resolved recipe is damaged.
    """
    path = folder / RECIPE
    found = read_json(path).get(RUN_IDS, []) if path.is_file() else []
    if not isinstance(found, list) or not all(isinstance(id, str) for id in found):
        raise unreadable_error(path, f"{RUN_IDS} = {found!r}"[:80], "restore it from a backup")
    return tuple(found)


@contextmanager
def unreadable_errors(path: Path) -> Iterator[None]:
    """Turn an OSError of reading `path` into SD-F704."""
    try:
        yield
    except OSError as fault:
        missing = isinstance(fault, FileNotFoundError)
        fix = "restore it from a backup" if missing else "fix its permissions, or restore it from a backup"
        raise unreadable_error(path, fault.strerror or str(fault), fix) from fault


def unreadable_error(path: Path, got: str, fix: str) -> SdditError:
    return error("SD-F704", "a file cannot be read", where=str(path), got=got, fix=fix)


def ensure_directory(path: Path) -> Path:
    """Create the folder `path` if necessary and return its real path. Raises SD-F705 if that is impossible."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        return path.resolve(strict=True)
    except (FileExistsError, NotADirectoryError, FileNotFoundError) as cause:
        got, fix = "a file, or a link to nothing, is in the way", "move it away, or choose another path"
        if isinstance(cause, FileNotFoundError):
            got, fix = f"the system cannot create a folder there ({cause.strerror})", "choose another path"
        what, expect = "the folder cannot be created", "a folder, or a free name"
        raise error("SD-F705", what, where=str(path), got=got, expect=expect, fix=fix) from cause
    except OSError as cause:
        raise atomic.storage_error(cause, path) from cause
