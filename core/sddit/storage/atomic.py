"""Write files atomically: after a kill, a full disk or a lost connection, either the old or the new file is there."""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO
from uuid import uuid4

from sddit.errors import SdditError, error

STAGED_PREFIX = ".tmp-"  # of names of unfinished files and folders
DELETED_PREFIX = ".del-"  # of names of folders that are being removed

NOT_NUMBERS = ("NaN", "Infinity", "-Infinity")  # as text, which float() reads: JSON has no such numbers

FAILURES = {
    "ENOSPC EDQUOT": ("SD-M610", "no space left to write to", "free some space, then rerun"),
    "EFBIG": ("SD-M610", "a file is larger than the limit on file sizes", "raise the limit (ulimit -f), then rerun"),
    "EACCES EPERM EROFS": ("SD-F703", "the run folder cannot be used", "fix its permissions"),
    "ENAMETOOLONG": ("SD-F705", "a path of the run folder is too long", "choose a shorter name"),
    "EBADF": (
        "SD-P228",
        "an open file of the run was closed",
        "close in a plugin only the descriptors that it opened, then rerun",
    ),
    "ENOENT ENOTDIR": ("SD-F706", "the run folder no longer exists", "restore it, then rerun"),
    "EEXIST EISDIR ELOOP ENOTEMPTY ENXIO": (
        "SD-F705",
        "a path of the run folder cannot be used",
        "move away what is there",
    ),
}
"""{names of system errors: code, what is wrong, fix}."""


def replace_file(path: Path, data: bytes) -> None:
    """Write `data` to `path` atomically: to a temporary file in the same folder, which is synced and renamed.

    A link at `path` is replaced, not followed. Raises SdditError if the storage fails; `path` is then unchanged.
    """
    write_file(path, lambda file: file.write(data))


def write_file(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Replace a file as `replace_file` does, with what `write` writes to the file that it is given."""
    staged = staged_name(path.parent, path.name)
    with storage_errors(path):
        try:
            with create_synced(staged) as file:
                write(file)
            staged.replace(path)
        except BaseException:
            staged.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)


def staged_name(folder: Path, label: str) -> Path:
    """Return a temporary name in the folder of the final one, since a rename across devices would fail."""
    return folder / f"{STAGED_PREFIX}{label}-{uuid4().hex}"


def write_synced(path: Path, data: bytes) -> None:
    """Create, write and sync a file. Raises OSError if the path exists, also as a link. The umask applies."""
    with create_synced(path) as file:
        file.write(data)


@contextmanager
def create_synced(path: Path) -> Iterator[BinaryIO]:
    """Create a file that the body writes, and sync it, as `write_synced` does."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    with os.fdopen(descriptor, "wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


def open_file(path: Path | str, flags: int = os.O_RDONLY) -> int:
    """Open a regular file and return its descriptor.

    Raises OSError for anything else: a folder, or a FIFO or device, which could block for ever.
    """
    descriptor = os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        number = errno.EISDIR if stat.S_ISDIR(mode) else errno.ENXIO
        raise OSError(number, "Is a directory" if stat.S_ISDIR(mode) else "Not a regular file", str(path))
    return descriptor


def file_identity(descriptor: int) -> tuple[int, int]:
    """Return device and inode of an open file; zeros if the descriptor is closed. Other code may close or reuse it."""
    try:
        status = os.fstat(descriptor)
    except OSError:
        return 0, 0
    return status.st_dev, status.st_ino


def refuse_replaced(descriptor: int, identity: tuple[int, int]) -> None:
    """Raise OSError (EBADF) if a descriptor no longer is the file that was opened with it."""
    if file_identity(descriptor) != identity:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))


def read_file(path: Path) -> bytes:
    """Return the bytes of a regular file. Raises OSError for anything else, without blocking."""
    with os.fdopen(open_file(path), "rb") as file:
        return file.read()


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable: without it, a power failure may undo a rename."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def mark_for_deletion(folder: Path) -> Path:
    """Rename a folder durably, so that its removal can be interrupted. Returns the new path."""
    marked = folder.with_name(f"{DELETED_PREFIX}{uuid4().hex}")
    folder.rename(marked)
    sync_folder(folder.parent)
    return marked


def remove_folder(folder: Path) -> None:
    """Remove a folder. Of a link, only the link is removed, not its target."""
    if folder.is_symlink():
        with suppress(OSError):
            folder.unlink()
    else:
        shutil.rmtree(folder, ignore_errors=True)


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files of a killed process, at any depth. Only for the holder of the run folder's lock."""
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
    """Return standard JSON: NaN and infinities are written as text, see `NOT_NUMBERS`."""
    return json.dumps(_with_text_for_non_finite(value), allow_nan=False, indent=indent)


def _with_text_for_non_finite(value: Any) -> Any:
    """Replace non-finite floats by text."""
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
    """Turn an OSError of the body into an error with a fix."""
    try:
        yield
    except OSError as cause:
        raise storage_error(cause, path) from cause


def storage_error(cause: OSError, path: Path) -> SdditError:
    """Return the documented error for an OSError at `path`."""
    name = errno.errorcode.get(cause.errno or 0, "?")
    known = (failure for names, failure in FAILURES.items() if name in names.split())
    code, what, fix = next(known, ("SD-M611", "the storage failed", "check the disk or mount, then rerun"))
    return error(code, what, where=str(path), got=f"{cause.strerror or cause} ({name})", fix=fix)
