"""Stop on a signal: the first lets the step finish and be saved, the second stops at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from signal import Signals
from types import FrameType
from typing import Any, Self

REQUESTS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


def end_at_signals() -> None:
    """Let SIGTERM and SIGUSR1 raise SystemExit, so that everything is closed before the process ends.

    This is for the start of a program; later, `StopSignals` lets it save first.
    """

    def end(number: int, frame: FrameType | None) -> None:
        raise Stopped(128 + number)

    set_handlers(dict.fromkeys((signal.SIGTERM, signal.SIGUSR1), end))


def ignore_signals() -> None:
    """Ignore signals, for a process that is about to end with an error of its own."""
    set_handlers(dict.fromkeys(REQUESTS, signal.SIG_IGN))


def set_handlers(handlers: Mapping[Signals, Any]) -> dict[Signals, Any]:
    """Set the handlers of signals and return the previous ones. Only the main thread can; elsewhere nothing changes."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    return {number: signal.signal(number, handler) for number, handler in handlers.items()}


class Stopped(SystemExit):
    """Raised by the first signal where nothing has to be saved."""


class StopSignals:
    """Record SIGTERM, SIGINT and SIGUSR1 while it is entered, so that the step can be finished and saved.

    A second signal raises SystemExit(128 + its number) at once. One of several processes stops for the signal that all
    have `agreed` on, not for the one that it `received`, so that all stop after the same step.

    SIGHUP, a closed terminal, counts as SIGTERM unless the process ignores it (nohup). Outside the main thread nothing
    is recorded: Python delivers signals to the main thread only.
    """

    def __init__(self, *, alone: bool = True) -> None:
        self.alone = alone
        self.received: Signals | None = None  # the first one that this process received
        self.agreed: Signals | None = None  # the first one that any process received, known to all
        self._hold = True  # whether the first signal is only recorded
        self._before: dict[Signals, Any] = {}  # handlers

    @property
    def signal(self) -> Signals | None:
        """The signal to stop for."""
        return self.received if self.alone else self.agreed

    @property
    def requested(self) -> bool:
        """Whether to save and stop after this step."""
        return self.signal is not None

    @property
    def exit_status(self) -> int:
        """143 after SIGTERM, 130 after SIGINT, 138 after SIGUSR1; 0 when none came."""
        return 0 if self.signal is None else 128 + self.signal

    def __enter__(self) -> Self:
        outlives_terminal = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        signals = REQUESTS if outlives_terminal else (*REQUESTS, signal.SIGHUP)
        self._before = set_handlers(dict.fromkeys(signals, self._record))
        return self

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Raise Stopped at the first signal, including an earlier one: nothing inside needs to be finished.

        Several processes stop only for a signal that all have agreed on, so that none waits for another.
        """
        if self.signal is not None:
            raise Stopped(self.exit_status)
        self._hold = not self.alone
        try:
            yield
        finally:
            self._hold = True

    def __exit__(self, *exception: object) -> None:
        set_handlers(self._before)

    def _record(self, number: int, frame: FrameType | None) -> None:
        arrived = signal.SIGTERM if number == signal.SIGHUP else signal.Signals(number)
        if self.received is not None:
            raise SystemExit(128 + arrived)
        self.received = arrived
        if not self._hold:
            raise Stopped(self.exit_status)
