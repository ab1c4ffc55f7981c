"""Write and read metrics.jsonl."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sddit.errors import SdditError, error
from sddit.interfaces.metric_names import SCORE
from sddit.storage.atomic import (
    NOT_NUMBERS,
    open_file,
    read_file,
    replace_file,
    storage_errors,
    to_json,
)
from sddit.storage.run_folder import unreadable_error

TAIL = 1 << 18  # bytes at the end of a metrics log that hold its last row


# Metrics


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
        raise unreadable_error(
            path, fault.strerror or str(fault), "mend its permissions, or put a copy back"
        ) from fault
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


def logged_steps(path: Path) -> int:
    """Return the last step in a log; 0 for a missing or damaged one."""
    try:
        return int(last_metrics(path).get("step", 0))
    except (SdditError, ValueError, TypeError):
        return 0


def whole_lines(data: bytes) -> int:
    """The length of `data` up to its last line end."""
    return data.rfind(b"\n") + 1


def write_all(descriptor: int, data: bytes) -> None:
    """Write all of `data`, also where the system takes it in parts."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
