"""The run folder: one writer at a time, every file whole, and a metrics log that loses and repeats no row."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import socket
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from sddit.errors import SdditError, error
from sddit.evaluation.figures import SCORE
from sddit.training.durable import (
    NOT_NUMBERS,
    open_file,
    read_file,
    remove_leftovers,
    replace_file,
    storage_errors,
    sync_folder,
    to_json,
)

RECIPE, ENVIRONMENT, METRICS = "recipe.resolved.json", "environment.json", "metrics.jsonl"
SCORES, COST, REPORT, CHANGES = "scores.json", "cost.json", "report.html", "changes.json"

LOCK = "run.lock"
SEAL = ".sha256"  # ends the name of the file that holds the hash of the one beside it
TAIL = 1 << 18  # bytes at the end of a metrics log that hold its last row

_held: set[int] = set()  # descriptors of the locks of this process


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
        self.path = made(self.path)
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
        raise unreadable(path, fault.strerror or str(fault), "mend its permissions, or put a copy back") from fault
    if sealed not in (None, found):
        raise error(
            "SD-F704",
            "a file of the run folder is not what was written",
            where=str(path),
            got=f"sha256 {found[:12].decode()}...",
            expect=f"as in {seal.name}",
            fix=f"put a copy back; if you changed it yourself, delete {seal.name}",
        )


def recipe_in(folder: Path) -> Path:
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
        raise unreadable(path, str(fault), fix) from fault
    if not isinstance(held, kind):
        raise unreadable(path, type(held).__name__, fix)
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
            raise unreadable(path, str(change)[:80], fix)
    return found


def unreadable(path: Path, got: str, fix: str) -> SdditError:
    """SD-F704."""
    return error("SD-F704", "a file cannot be read", where=str(path), got=got, fix=fix)


def made(path: Path) -> Path:
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


# --------------------------------------------------------------------------------------------------------------------
# The lock. It belongs to the open file, so the system lets it go when its process ends, however it ends.
# --------------------------------------------------------------------------------------------------------------------


def take_lock(path: Path) -> tuple[int, str]:
    """A descriptor that holds the lock while it is open, and the last holder if that one did not let it go itself.

    Raises SD-F701 if another process holds it.
    """
    lock = open_file(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = owner_in(lock) or "a process that is just starting"
        os.close(lock)
        fix = "wait for it, stop it, or choose another run"
        raise error("SD-F701", f"the run folder is in use by {holder}", where=str(path.parent), fix=fix) from None
    last = owner_in(lock)
    owner = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
    os.ftruncate(lock, 0)
    os.pwrite(lock, to_json(owner).encode(), 0)
    _held.add(lock)
    return lock, last


def holder(folder: Path) -> str:
    """Which process holds a run folder, as `pid 123 on host h since ...`; empty if none does."""
    try:
        lock = open_file(folder / LOCK, os.O_RDONLY | os.O_NOFOLLOW)
    except FileNotFoundError:
        return ""
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return owner_in(lock) or "a process that is just starting"
    else:
        return ""
    finally:
        os.close(lock)


def release_lock(lock: int) -> None:
    """Let a lock of this process go, and say so in its file."""
    if lock in _held:
        _held.remove(lock)
        os.ftruncate(lock, 0)
        os.close(lock)


def owner_in(lock: int) -> str:
    """`pid 123 on host h since ...` from a lock file; empty if it names nobody."""
    try:
        owner = json.loads(os.pread(lock, 4096, 0))
        return f"pid {owner['pid']} on host {owner['host']} since {owner['since']}"
    except (ValueError, KeyError, TypeError, RecursionError):
        return ""


def _forget_locks() -> None:
    """A forked child, such as a loader worker, must not keep its parent's folder locked after the parent's death."""
    for lock in _held:
        os.close(lock)
    _held.clear()


os.register_at_fork(after_in_child=_forget_locks)


# --------------------------------------------------------------------------------------------------------------------
# Metrics
# --------------------------------------------------------------------------------------------------------------------


class MetricsLog:
    """`metrics.jsonl`: one JSON object a line, in the file as soon as it is appended.

    A checkpoint keeps the log's cursor, its length in bytes. A resumed run hands it back with the checkpoint's step, and
    what was logged after the checkpoint is cut off, to be logged again: no row is lost or doubled. With `cursor=None` all
    whole lines stay. A torn last line goes either way.
    """

    def __init__(self, path: Path, cursor: int | None = None, step: int = 0) -> None:
        self.path = path
        with storage_errors(path):
            os.close(open_file(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW))
            data = read_file(path)
            data = data[: whole_lines(data)]
            self.changed = cursor is not None and not left_at(data, cursor, step)
            """Whether the file is not as the checkpoint left it. Then the rows up to its step are kept."""
            if self.changed:
                data, cursor = b"".join(rows_until(data, step)), None
                replace_file(path, data)
            self.cursor = len(data[:cursor])
            self._file = open_file(path, os.O_RDWR | os.O_APPEND | os.O_NOFOLLOW)
            os.ftruncate(self._file, self.cursor)

    def append(self, row: Mapping[str, Any]) -> None:
        """Add a row. If the storage refuses, SdditError, and the log is as it was."""
        line = to_json(dict(row)).encode() + b"\n"
        with storage_errors(self.path):
            try:
                write_all(self._file, line)
            except BaseException:
                os.ftruncate(self._file, self.cursor)
                raise
        self.cursor += len(line)

    def sync(self) -> int:
        """Make all rows durable. Returns the cursor, for the checkpoint."""
        with storage_errors(self.path):
            os.fsync(self._file)
        return self.cursor

    def close(self) -> None:
        os.close(self._file)


def left_at(data: bytes, cursor: int, step: int) -> bool:
    """Whether whole lines of a log have the end that a checkpoint of this step saw at its cursor.

    What an editor adds or takes away above it moves that end, into a row or to the end of another one.
    """
    before, after = data[:cursor], data[cursor:]
    if len(before) < cursor or whole_lines(before) < cursor:
        return False
    last = row_in(before.splitlines()[-1]) if before else None
    following = row_in(after.splitlines()[0]) if after else None
    if last is not None and last["step"] > step:
        return False
    return following is None or following["step"] > step or is_score_of(step, following)


def rows_until(data: bytes, step: int) -> Iterator[bytes]:
    """The lines of a log but for rows of later steps, and scores of this one, which are logged again.

    What is no row stays, for a person to look at.
    """
    for line in data.splitlines(keepends=True):
        row = row_in(line)
        if row is None or (row["step"] <= step and not is_score_of(step, row)):
            yield line


def row_in(line: bytes) -> dict[str, Any] | None:
    """A row, with a step that is a number; None: the line is none."""
    try:
        row: dict[str, Any] = json.loads(line)
        return row if isinstance(row["step"], int | float) else None
    except (ValueError, TypeError, KeyError, RecursionError):
        return None


def is_score_of(step: int, row: Mapping[str, Any]) -> bool:
    """Whether a row holds scores of this step. They are logged after the step is saved, and anew where a stop cut them short."""
    return row["step"] == step and any(name.startswith(SCORE) for name in row)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics log, also of one that is being written; NaN and infinities are floats again.

    Raises SD-F704 for a whole line that is no row, and for a file that cannot be read.
    """
    try:
        data = read_file(path)
    except OSError as fault:
        raise unreadable(path, fault.strerror or str(fault), "mend its permissions, or put a copy back") from fault
    return [read_row(path, number, line) for number, line in enumerate(data[: whole_lines(data)].split(b"\n")[:-1], 1)]


def read_row(path: Path, number: int, line: bytes) -> dict[str, Any]:
    """One line of a metrics log."""
    try:
        row: dict[str, Any] = json.loads(line)
        return {key: float(value) if value in NOT_NUMBERS else value for key, value in row.items()}
    except (ValueError, TypeError, AttributeError, RecursionError) as fault:
        raise error(
            "SD-F704",
            "a line of the metrics cannot be read",
            where=f"{path}:{number}",
            got=f"{type(fault).__name__}: {fault}",
            fix="put a copy back, or delete that line",
        ) from fault


def last_metrics(path: Path) -> dict[str, Any]:
    """The last whole row of a metrics log, read from its end; nothing before the first row.

    Raises SD-F704 for a file that is no such log.
    """
    if not path.is_file():
        return {}
    with os.fdopen(open_file(path), "rb") as log:
        log.seek(max(0, path.stat().st_size - TAIL))
        tail = log.read()
    if not tail.isascii():
        raise error(
            "SD-F704",
            "the metrics cannot be read",
            where=str(path),
            got="bytes that are no text of ours",
            fix="put a copy back, or delete the damaged line",
        )
    for line in reversed(tail.splitlines()):
        with contextlib.suppress(ValueError, RecursionError):  # cut short by a crash
            row = json.loads(line)
            if isinstance(row, dict):
                return row
    return {}


def whole_lines(data: bytes) -> int:
    """The length of `data` up to its last line end."""
    return data.rfind(b"\n") + 1


def write_all(descriptor: int, data: bytes) -> None:
    """Write all of `data`, also where the system takes it in parts."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
