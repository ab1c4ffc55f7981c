"""Write and read metrics.jsonl."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sddit.errors import SdditError, error
from sddit.formatting import format_count
from sddit.interfaces.metric_names import SCORE
from sddit.storage.atomic import (
    NOT_NUMBERS,
    file_identity,
    open_file,
    read_file,
    refuse_replaced,
    replace_file,
    storage_errors,
    to_json,
)
from sddit.storage.run_folder import free_name, unreadable_errors

TAIL = 1 << 18  # bytes at the end of a metrics log that hold its last row


class MetricsLog:
    """Append rows to `metrics.jsonl`: one JSON object per line, written at once.

    A checkpoint stores the log's cursor, its length in bytes. A resumed run passes it with the checkpoint's step, and
    the rows after the checkpoint are removed, to be logged again: no row is lost or duplicated. With `cursor=None` all
    complete lines are kept. An incomplete last line is always removed.
    """

    def __init__(self, path: Path, cursor: int | None = None, step: int = 0) -> None:
        self.path = path
        with storage_errors(path):
            os.close(open_file(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW))
            data = read_file(path)
            data = data[: length_of_complete_lines(data)]
            self.changed = cursor is not None and not ends_at_cursor(data, cursor, step)
            """Whether the file was changed after the checkpoint. The rows up to its step are then kept."""
            if self.changed:
                data, cursor = b"".join(lines_until(data, step)), None
                replace_file(path, data)
            self.cursor = len(data[:cursor])
            self._file = open_file(path, os.O_RDWR | os.O_APPEND | os.O_NOFOLLOW)
            os.ftruncate(self._file, self.cursor)
            self._identity = file_identity(self._file)
        self.notices: list[str] = []  # what happened to the file while it was open, for the user

    def append(self, row: Mapping[str, Any]) -> None:
        """Append a row. Raises SdditError if the storage fails; the log is then unchanged."""
        line = to_json(dict(row)).encode() + b"\n"
        self.recover()
        with storage_errors(self.path):
            try:
                view = memoryview(line)
                while view:  # the system may accept it in parts
                    view = view[os.write(self._file, view) :]
            except BaseException:
                os.ftruncate(self._file, self.cursor)
                raise
        self.cursor += len(line)

    def sync(self) -> int:
        """Sync all rows to disk. Returns the cursor, for the checkpoint."""
        self.recover()
        with storage_errors(self.path):
            os.fsync(self._file)
        return self.cursor

    def recover(self) -> None:
        """Restore the file if another process removed, replaced or changed it since the last row.

        A removed file is written again from the open one, which still has every row. Rows that were cut off are lost.
        Raises SD-F706 if the run folder is gone, too.
        """
        with storage_errors(self.path):
            refuse_replaced(self._file, self._identity)
            held = os.fstat(self._file)
            found = self.path.lstat() if os.path.lexists(self.path) else None
            if found is None or (found.st_ino, found.st_dev) != (held.st_ino, held.st_dev):
                self._write_again(replaced=found is not None)
            if held.st_size != self.cursor:
                self._accept(held.st_size)

    def _write_again(self, *, replaced: bool) -> None:
        """Write the log to its path again. What another process put there is kept under another name."""
        if replaced:
            kept = free_name(self.path.parent, f"{self.path.name}.replaced")
            self.path.rename(kept)
            what = f"replaced during training, by what is now in {kept.name}"
        else:
            what = "removed during training"
        replace_file(self.path, os.pread(self._file, os.fstat(self._file).st_size, 0))
        new = open_file(self.path, os.O_RDWR | os.O_APPEND | os.O_NOFOLLOW)
        os.close(self._file)
        self._file, self._identity = new, file_identity(new)
        self.notices.append(f"{self.path.name} was {what}; it was written again, and no row is lost")

    def _accept(self, size: int) -> None:
        """Continue after the complete lines of a file whose size was changed."""
        data = os.pread(self._file, size, 0)
        rows = data.count(b"\n")
        if size < self.cursor:
            what = f"cut off during training: {self.cursor - size:,} of {self.cursor:,} bytes are lost"
            what += (
                f", and {format_count(rows, 'earlier row')} {'is' if rows == 1 else 'are'} left"
                if rows
                else ", with all earlier rows"
            )
        else:
            what = f"changed during training: another process wrote {size - self.cursor:,} bytes to it"
        self.cursor = length_of_complete_lines(data)
        os.ftruncate(self._file, self.cursor)
        self.notices.append(f"{self.path.name} was {what}; the report shows what is left")

    def close(self) -> None:
        """Close the file, unless other code closed it already."""
        if file_identity(self._file) == self._identity:
            os.close(self._file)


def ends_at_cursor(data: bytes, cursor: int, step: int) -> bool:
    """Return whether a log of complete lines has the rows of a checkpoint's step right before the cursor.

    A line added or removed above the cursor moves this boundary.
    """
    before, after = data[:cursor], data[cursor:]
    if length_of_complete_lines(before) < cursor:
        return False
    last, following = parse_row(before[:-1].rpartition(b"\n")[2]), parse_row(after.partition(b"\n")[0])
    if last is not None and last["step"] > step:
        return False
    return following is None or following["step"] > step or is_score_of(step, following)


def lines_until(data: bytes, step: int) -> Iterator[bytes]:
    """Yield the lines of a log without rows of later steps and without scores of this step, which are logged again.

    Lines that are not rows are kept for the user to inspect.
    """
    for line in data.splitlines(keepends=True):
        row = parse_row(line)
        if row is None or (row["step"] <= step and not is_score_of(step, row)):
            yield line


def parse_row(line: bytes) -> dict[str, Any] | None:
    """Return the row in a line; None if the line is not a row with a numeric step."""
    try:
        row: dict[str, Any] = json.loads(line)
        return row if isinstance(row["step"], int | float) else None
    except (ValueError, TypeError, KeyError, RecursionError):
        return None


def is_score_of(step: int, row: Mapping[str, Any]) -> bool:
    """Return whether a row has scores of this step.

    They are logged after the save, so a resumed run logs them again.
    """
    return row.get("step") == step and any(name.startswith(SCORE) for name in row)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Read the rows of a metrics log, even while it is written. NaN and infinities are floats again.

    Raises SD-F704 for a complete line that is not a row, and for an unreadable file.
    """
    with unreadable_errors(path):
        data = read_file(path)
    rows = []
    for number, line in enumerate(data.split(b"\n")[:-1], 1):
        try:
            row = json.loads(line)
            rows.append({key: float(value) if value in NOT_NUMBERS else value for key, value in row.items()})
        except (ValueError, TypeError, AttributeError, RecursionError) as fault:
            raise error(
                "SD-F704",
                "a line of the metrics cannot be read",
                where=f"{path}:{number}",
                got=f"{type(fault).__name__}: {fault}",
                fix="restore the file from a backup, or delete that line",
            ) from fault
    return rows


def last_metrics(path: Path) -> dict[str, Any]:
    """Return the last complete row of a metrics log; an empty one if there is none. Only the end of the file is read.

    Raises SD-F704 for a file that is not a metrics log.
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
            got="bytes that are not ASCII text",
            fix="restore the file from a backup, or delete the damaged line",
        )
    rows = map(parse_row, reversed(tail.splitlines()))  # the last line is incomplete after a crash
    return next((row for row in rows if row is not None), {})


def logged_steps(path: Path) -> int:
    """Return the last step in a log; 0 for a missing or damaged one."""
    try:
        return int(last_metrics(path).get("step", 0))
    except (SdditError, ValueError, TypeError):
        return 0


def length_of_complete_lines(data: bytes) -> int:
    """Return the length of `data` up to and including its last newline."""
    return data.rfind(b"\n") + 1
