"""Writing files so that a kill, a full disk or a lost cable leaves the old one or the new one, never half of one."""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

from sddit.errors import SdditError, error

STAGED_PREFIX = ".tmp-"  # begins the name of what is being written
DELETED_PREFIX = ".del-"  # begins the name of what is being removed

NOT_NUMBERS = ("NaN", "Infinity", "-Infinity")  # what JSON has no number for, as text that float() reads

FULL = {errno.ENOSPC, errno.EDQUOT}
FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}
GONE = {errno.ENOENT, errno.ENOTDIR}
IN_THE_WAY = {errno.EEXIST, errno.EISDIR, errno.ELOOP, errno.ENOTEMPTY, errno.ENXIO}


def replace_file(path: Path, data: bytes) -> None:
    """Put `data` at `path` in one move: written beside it, synced, renamed. A link at `path` is replaced, not followed.

    Raises SdditError where the storage refuses; `path` is then as it was.
    """
    staged = staged_name(path.parent, path.name)
    with storage_errors(path):
        try:
            with os.fdopen(create(staged), "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            staged.replace(path)
        except BaseException:
            staged.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)


def staged_name(folder: Path, label: str) -> Path:
    """A name for unfinished work, in the folder where it will be published: a rename across devices would fail."""
    return folder / f"{STAGED_PREFIX}{label}-{uuid4().hex}"


def create(path: Path) -> int:
    """A descriptor of a new file. What lies there already, a link included, is an error. Modes honour the umask."""
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)


def open_file(path: Path | str, flags: int = os.O_RDONLY) -> int:
    """A descriptor of a regular file, made if `flags` say so.

    OSError for anything else: a folder, and what could keep us waiting for ever, as a FIFO or a device does.
    """
    descriptor = os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        number = errno.EISDIR if stat.S_ISDIR(mode) else errno.ENXIO
        raise OSError(number, "Is a directory" if stat.S_ISDIR(mode) else "Not a regular file", str(path))
    return descriptor


def read_file(path: Path) -> bytes:
    """The bytes of a regular file. OSError for anything else, at once."""
    with os.fdopen(open_file(path), "rb") as file:
        return file.read()


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable: without it a rename may be lost with the power."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def mark_for_deletion(folder: Path) -> Path:
    """Take a folder away in one durable move, so that freeing its space can be interrupted. Returns its new place."""
    doomed = folder.with_name(f"{DELETED_PREFIX}{uuid4().hex}")
    folder.rename(doomed)
    sync_folder(folder.parent)
    return doomed


def remove_folder(folder: Path) -> None:
    """Free what a folder takes. Of a link only the link goes: what lies elsewhere is not ours to delete."""
    if folder.is_symlink():
        with suppress(OSError):
            folder.unlink()
    else:
        shutil.rmtree(folder, ignore_errors=True)


def remove_leftovers(folder: Path) -> None:
    """Remove unfinished work of a killed process, at any depth. Only for the holder of the run folder's lock."""
    for parent, folders, files in os.walk(folder):
        for name in (*folders, *files):
            if not name.startswith((STAGED_PREFIX, DELETED_PREFIX)):
                continue
            leftover = Path(parent, name)
            if name in folders:
                remove_folder(leftover)
            else:
                leftover.unlink(missing_ok=True)
        folders[:] = [name for name in folders if not name.startswith((STAGED_PREFIX, DELETED_PREFIX))]


def to_json(value: Any, *, indent: int | None = None) -> str:
    """JSON that every reader accepts: a NaN or an infinity is written as text, see `NOT_NUMBERS`."""
    return json.dumps(_with_text_for_non_finite(value), allow_nan=False, indent=indent)


def _with_text_for_non_finite(value: Any) -> Any:
    """`value` with its non-finite floats as text."""
    if isinstance(value, float) and not math.isfinite(value):
        nan, infinity, minus_infinity = NOT_NUMBERS
        return nan if math.isnan(value) else infinity if value > 0 else minus_infinity
    if isinstance(value, dict):
        return {key: _with_text_for_non_finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_with_text_for_non_finite(item) for item in value]
    return value


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn an OSError of the body into the error that a person can act on."""
    try:
        yield
    except OSError as cause:
        raise storage_error(cause, path) from cause


def storage_error(cause: OSError, path: Path) -> SdditError:
    """The documented error for what the operating system refused at `path`."""
    where, got = str(path), f"{cause.strerror or cause} ({errno.errorcode.get(cause.errno or 0, '?')})"
    if cause.errno in FULL:
        return error(
            "SD-M610", "no space left to write to", where=where, got=got, fix="free some space, then run again"
        )
    if cause.errno == errno.EFBIG:
        fix = "raise the limit (ulimit -f), then run again"
        return error("SD-M610", "a file is larger than the limit on file sizes", where=where, got=got, fix=fix)
    if cause.errno in FORBIDDEN:
        return error("SD-F703", "the run folder cannot be used", where=where, got=got, fix="mend its permissions")
    if cause.errno == errno.ENAMETOOLONG:
        fix = "choose a shorter name"
        return error("SD-F705", "a path of the run folder is too long", where=where, got=got, fix=fix)
    if cause.errno in GONE:
        return error("SD-F706", "the run folder has gone", where=where, got=got, fix="put it back, then run again")
    if cause.errno in IN_THE_WAY:
        return error(
            "SD-F705", "a path of the run folder cannot be used", where=where, got=got, fix="move away what is there"
        )
    return error("SD-M611", "the storage failed", where=where, got=got, fix="look at the disk or mount, then run again")
