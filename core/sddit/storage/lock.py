"""Lock a run folder, or another folder that is written to, for one process."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sddit.errors import error
from sddit.storage.atomic import file_identity, open_file, refuse_replaced, to_json

LOCK = "run.lock"

# A lock belongs to the open file, so the system releases it when its process ends for any reason.
_own_locks: dict[int, tuple[int, int]] = {}  # descriptors of the locks of this process, and their `file_identity`


def take_lock(path: Path) -> tuple[int, str]:
    """Take the lock. Returns its descriptor, and the previous holder if that process exited without releasing it.

    Raises SD-F701 if another process holds the lock.
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
    _own_locks[lock] = file_identity(lock)
    return lock, last


@contextmanager
def lock_folder(folder: Path) -> Iterator[bool]:
    """Lock a folder without a file, and give whether no other process holds it. Raises OSError if there is none."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        free = True
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            free = False
        except OSError:
            pass  # a file system without locks
        yield free
    finally:
        os.close(descriptor)


def holder(folder: Path) -> str:
    """Return the process that locks a run folder, as `pid 123 on host h since ...`; empty if none does."""
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
    """Release a lock of this process and empty its file."""
    if lock in _own_locks and file_identity(lock) == _own_locks.pop(lock):
        os.ftruncate(lock, 0)
        os.close(lock)


def refuse_lost_locks() -> None:
    """Raise OSError (EBADF) if other code closed a lock of this process: another process could now take it."""
    for lock, identity in _own_locks.items():
        refuse_replaced(lock, identity)


def owner_in(lock: int) -> str:
    """Read `pid 123 on host h since ...` from a lock file; empty if it names no process."""
    try:
        owner = json.loads(os.pread(lock, 4096, 0))
        return f"pid {owner['pid']} on host {owner['host']} since {owner['since']}"
    except (ValueError, KeyError, TypeError, RecursionError):
        return ""


def _close_locks_in_child() -> None:
    """Close inherited locks: a forked child must not keep its parent's folder locked after the parent's end."""
    for lock in _own_locks:
        os.close(lock)
    _own_locks.clear()


os.register_at_fork(after_in_child=_close_locks_in_child)


@contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Lock a folder. Raises SD-F715 if another process holds the lock."""
    with lock_folder(folder) as free:
        if not free:
            raise error("SD-F715", "another process is writing to this folder", where=str(folder))
        yield
