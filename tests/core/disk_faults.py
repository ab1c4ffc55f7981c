"""Make a disk fail, or kill the process, at the n-th operation that changes the disk."""

from __future__ import annotations

import errno
import os
import signal
import stat
import sys
from collections.abc import Callable
from typing import Any

from sddit.errors import SdditError


class Faults:
    """Count the operations that change a disk, and make the n-th one fail. Only for a forked process."""

    EVENTS = ("os.mkdir", "os.rename", "os.remove", "os.rmdir")

    def __init__(self, turn: int, *, kill: bool) -> None:
        self.turn, self.kill, self.count = turn, kill, 0
        os.fsync = self.synced
        sys.addaudithook(self.observe)

    def observe(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event in self.EVENTS or (event == "open" and isinstance(arguments[0], str) and arguments[2] & os.O_CREAT):
            self.reach()

    def synced(self, descriptor: int) -> None:
        """A file that meets a full disk has a part of its bytes."""
        if self.count + 1 == self.turn and stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.ftruncate(descriptor, os.fstat(descriptor).st_size // 2)
        self.reach()

    def reach(self) -> None:
        self.count += 1
        if self.count == self.turn:
            if self.kill:
                os.kill(os.getpid(), signal.SIGKILL)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def in_child(act: Callable[[], object], turn: int, *, kill: bool) -> str:
    """Return how a process with a fault ends: `done` before the fault, `killed`, or `refused`."""
    child = os.fork()
    if child == 0:
        status = 3
        try:
            faults = Faults(turn, kill=kill)
            act()
            status = 0 if faults.count < turn else 2
        except SdditError as failure:
            status = 1 if failure.problems[0].code == "SD-M610" else 3
        except OSError:
            status = 1
        finally:
            os._exit(status)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return "killed"
    return {0: "done", 1: "refused", 2: "continued"}[os.WEXITSTATUS(status)]
