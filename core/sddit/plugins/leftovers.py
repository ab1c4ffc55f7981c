"""Find what plugins leave behind: threads and processes that outlive a command, and copies of this process."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

from sddit.errors import Problem
from sddit.plugins.host import host, third_party

GRACE = 5.0  # seconds that threads and processes have to end after the command
GRACE_OF_ATEXIT = 30.0  # seconds for functions of atexit, which may send data
FORKED = 3  # exit status of a copy of this process

_fork_stack: list[tuple[str, int]] = []  # (file, line) of the frames that forked this process, innermost first


def end_in_time(status: int, announce: Callable[[str], None]) -> None:
    """Let this process, which is about to exit, end with `status` within GRACE seconds.

    Python waits at exit for each thread that is not a daemon, for processes of multiprocessing, and for functions of
    atexit, without a limit.
    """
    if threads_left() or processes_left() or third_party():
        threading.Thread(target=_end_late, args=(status, announce), name="sddit-exit", daemon=True).start()


def _end_late(status: int, announce: Callable[[str], None]) -> None:
    until = time.monotonic() + GRACE_OF_ATEXIT
    time.sleep(GRACE)
    while not (threads_left() or processes_left()) and time.monotonic() < until:
        time.sleep(1)
    left = [f"a thread running{owner_of_thread(thread)}" for thread in threads_left()]
    left += [f"a process running (pid {process.pid}){suspects()}" for process in processes_left()]
    for text in left or [f"a function of atexit running{suspects()}"]:
        announce(f"warning: the command is done, but left {text}; it is ended now [SD-P229]")
    for process in processes_left():
        process.kill()
    os._exit(status)


def threads_left() -> list[threading.Thread]:
    """Return the threads that Python waits for at exit."""
    return [t for t in threading.enumerate() if not t.daemon and t is not threading.main_thread()]


def processes_left() -> list[Any]:
    """Return the processes of multiprocessing that Python waits for at exit."""
    module = sys.modules.get("multiprocessing.process")
    children: list[Any] = module.active_children() if module else []
    return [child for child in children if not child.daemon]


def owner_of_thread(thread: threading.Thread) -> str:
    """Return the plugin that a thread belongs to and the line it is at, as ` by plugin 'x' at file:line`."""
    stack = list(frames_of(sys._current_frames().get(thread.ident or 0)))
    started = [getattr(thread, name, None) for name in ("_target", "function", "run")]
    code = [found for function in started if (found := getattr(function, "__code__", None))]
    stack += [(found.co_filename, found.co_firstlineno) for found in code]
    return owner_in(stack) or f" ({thread.name!r}){suspects()}"


def frames_of(frame: FrameType | None) -> Iterator[tuple[str, int]]:
    """Yield file and line of a frame and of its callers, innermost first."""
    while frame is not None:
        yield frame.f_code.co_filename, frame.f_lineno
        frame = frame.f_back


def owner_in(stack: Iterable[tuple[str, int]]) -> str:
    """Return the innermost third-party plugin of a stack, as ` by plugin 'x' at file:line`; empty without one."""
    for file, line in stack:
        if row := host().owner_of(file):
            return f" by plugin {row.name!r} at {file}:{line}"
    return ""


def suspects() -> str:
    """Return the third-party plugins that are loaded, as ` by plugin 'x'` or ` by one of the plugins 'x', 'y'`."""
    names = ", ".join(map(repr, third_party()))
    return "" if not names else f" by plugin {names}" if "," not in names else f" by one of the plugins {names}"


def end_if_forked(pid: int) -> None:
    """End this process if it is not `pid` but a copy of it that a plugin forked and that returned to our code.

    It would train on, and write into the same run folder.
    """
    if os.getpid() != pid:
        end_copy()


def end_copy() -> NoReturn:
    """Report where this copy was forked, and end it without closing anything that it shares."""
    problem = Problem(
        "SD-P229",
        f"this process was copied{owner_in(_fork_stack) or suspects()}, and the copy returned from the plugin",
        where=f"pid {os.getpid()}, a copy of {os.getppid()}",
        fix="end the copy in the plugin with os._exit(0), or start another program with subprocess",
    )
    with open(2, "w", encoding="utf-8", errors="backslashreplace", closefd=False) as stderr:
        stderr.write("\n".join([*problem.lines(), ""]))
    os._exit(FORKED)


@contextmanager
def exit_raised() -> Iterator[None]:
    """Let a plugin that calls `os._exit` in this process raise SystemExit there, as `sys.exit` does.

    The process would end without a message, perhaps with status 0 and half of its work. Copies of this process, and
    code that no plugin called, exit as before.
    """
    leave, pid = os._exit, os.getpid()

    def leave_or_raise(status: int) -> NoReturn:
        if os.getpid() == pid and owner_in(frames_of(sys._getframe(1))):
            raise SystemExit(f"os._exit({status!r})")
        leave(status)

    vars(os)["_exit"] = leave_or_raise
    try:
        yield
    finally:
        vars(os)["_exit"] = leave


def _remember_fork() -> None:
    _fork_stack[:] = list(frames_of(sys._getframe(1)))[:100]


os.register_at_fork(after_in_child=_remember_fork)
