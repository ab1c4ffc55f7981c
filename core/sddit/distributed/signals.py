"""Stopping on request: the first signal lets the step finish and be saved, the second one stops at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from signal import Signals
from types import FrameType, TracebackType
from typing import Any, Self

REQUESTS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


def end_at_signals() -> None:
    """Let SIGTERM and SIGUSR1 end the process as SystemExit does, so that everything is closed on the way. For a program
    that is about to start: `StopSignals` has it save first where there is something to save.
    """

    def end(number: int, frame: FrameType | None) -> None:
        raise Stopped(128 + number)

    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, end)


def ignore_signals() -> None:
    """Let no request end the process: it is about to end by itself, with a cause to tell."""
    if threading.current_thread() is threading.main_thread():
        for number in REQUESTS:
            signal.signal(number, signal.SIG_IGN)


class Stopped(SystemExit):
    """The first signal came where nothing had to be saved before the program could end."""


class StopSignals:
    """Notes SIGTERM, SIGINT and SIGUSR1 while it is entered.

        with StopSignals() as stop:
            for step in steps:
                take(step)
                if stop.requested:
                    save()
                    raise SystemExit(stop.exit_status)

    A second signal raises SystemExit(128 + its number) wherever the program is. One of several processes does not stop for
    what it `heard` by itself, but for what all have `agreed` on, so that they stop after the same step.

    SIGHUP, a lost terminal, counts as SIGTERM unless the process was started to outlive it (nohup). Outside the main
    thread nothing is noted: Python delivers signals to the main thread only.
    """

    def __init__(self, *, alone: bool = True) -> None:
        self.alone = alone
        self.heard: Signals | None = None  # the first one that this process received
        self.agreed: Signals | None = None  # the one that some process received, as all know
        self._hold = True  # whether the first signal is only noted
        self._before: dict[signal.Signals, Any] = {}

    @property
    def signal(self) -> Signals | None:
        """The one to stop for."""
        return self.heard if self.alone else self.agreed

    @property
    def requested(self) -> bool:
        """Whether to save and stop after this step."""
        return self.signal is not None

    @property
    def exit_status(self) -> int:
        """143 after SIGTERM, 130 after SIGINT, 138 after SIGUSR1; 0 when none came."""
        return 0 if self.signal is None else 128 + self.signal

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            outlives_terminal = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
            for number in (*REQUESTS, *(() if outlives_terminal else (signal.SIGHUP,))):
                self._before[number] = signal.signal(number, self._note)
        return self

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Raise Stopped at the first signal already, one that came before included: nothing here needs to be finished.

        Of several processes, only where all have agreed: one of them alone does not leave the others waiting.
        """
        if self.signal is not None:
            raise Stopped(self.exit_status)
        self._hold = not self.alone
        try:
            yield
        finally:
            self._hold = True

    def __exit__(
        self, kind: type[BaseException] | None, cause: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    def _note(self, number: int, frame: FrameType | None) -> None:
        received = signal.SIGTERM if number == signal.SIGHUP else signal.Signals(number)
        if self.heard is not None:
            raise SystemExit(128 + received)
        self.heard = received
        if not self._hold:
            raise Stopped(self.exit_status)
