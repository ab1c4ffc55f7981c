"""What a run shows while it works: a live display on a terminal, a line now and then elsewhere, or nothing."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn
from rich.progress import Progress as Bar
from rich.text import Text

Clock = Callable[[], float]
LINE_EVERY = 10.0  # seconds between plain lines of a short stage
LINE_SHARE = 0.02  # of the whole stage between plain lines of a long one


class Progress:
    """The silent one, for notebooks and tests; subclasses override `show` and what prints.

    A run calls `stage` when a part of it begins, `update` as it goes on, `say` for a line that stays, and sets `folder` as
    soon as there is one, so that a crash log has a place.
    """

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self.folder: Path | None = None
        self._clock = clock
        self._name, self._unit, self._total = "", "", 0
        self._begun = self._first = self._done = 0.0
        self._values: dict[str, float] = {}

    def stage(self, name: str, total: int, done: int = 0, *, unit: str = "step") -> None:
        """Begin a part of the run, `training` or `sampling` say: `total` units, of which `done` were there already."""
        self.end_stage()
        self._name, self._unit, self._total, self._values = name, unit, total, {}
        self._begun, self._first, self._done = self._clock(), done, done
        self.show()

    def update(self, done: int, values: Mapping[str, float] | None = None) -> None:
        """`done` units are done; `values` are the newest numbers: `loss/<label>`, `images_per_second`, others are ignored."""
        self._done = done
        self._values.update(values or {})
        self.show()

    def end_stage(self) -> None:
        """The part that runs is over."""
        if self._name:
            self.say(self.summary())
            self._name = ""

    def say(self, text: str) -> None:
        """A line that stays."""

    def show(self) -> None:
        """Bring what is seen up to date."""

    def close(self) -> None:
        """Leave the screen in order, whatever happened."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, failure: BaseException | None, trace: TracebackType | None
    ) -> None:
        if failure is None:
            self.end_stage()
        self.close()

    @property
    def elapsed(self) -> float:
        """Seconds since the stage began in this sitting."""
        return self._clock() - self._begun

    def remaining(self) -> float | None:
        """Seconds that the rest of the stage takes at the pace so far; None before there is a pace."""
        if self._done <= self._first:
            return None
        return self.elapsed / (self._done - self._first) * (self._total - self._done)

    def detail(self) -> str:
        """`denoise 0.182   discrimination 6.10   1,240 images/s`."""
        parts = [
            f"{name.removeprefix('loss/')} {value:.4g}"
            for name, value in self._values.items()
            if name.startswith("loss/") and name.count("/") == 1
        ]
        if "images_per_second" in self._values:
            parts.append(f"{self._values['images_per_second']:,.0f} images/s")
        elif self._unit == "image" and self._done > self._first and self.elapsed > 0:
            parts.append(f"{(self._done - self._first) / self.elapsed:,.0f} images/s")
        return "   ".join(parts)

    def summary(self) -> str:
        """The line that a finished stage leaves."""
        done, plural = int(self._done - self._first), "" if self._total == 1 else "s"
        count = f"{done:,} {self._unit}{plural}" if self._unit else ""
        return "   ".join(part for part in (f"{self._name:<9}", count, duration(self.elapsed), self.detail()) if part)


class PlainProgress(Progress):
    """Lines of text, the first at once and then one every ten seconds, or every fiftieth of a long stage."""

    def __init__(self, console: Console, clock: Clock = time.monotonic) -> None:
        super().__init__(clock)
        self._console = console
        self._next = 0.0

    def stage(self, name: str, total: int, done: int = 0, *, unit: str = "step") -> None:
        self._next = 0.0
        super().stage(name, total, done, unit=unit)

    def say(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def show(self) -> None:
        left = self.remaining()
        if left is None or self.elapsed < self._next:
            return
        self._next = self.elapsed + max(LINE_EVERY, LINE_SHARE * (self.elapsed + left))
        count = f"{self._unit} {int(self._done):,}/{self._total:,}"
        self.say(
            "   ".join(part for part in (f"{self._name:<9}", count, self.detail(), f"{duration(left)} left") if part)
        )


class LiveProgress(Progress):
    """A bar with the time left, and under it the losses by term."""

    def __init__(self, console: Console, clock: Clock = time.monotonic) -> None:
        super().__init__(clock)
        self._console = console
        self._live: Live | None = None
        self._bar = Bar(
            TextColumn("[bold]{task.description:<9}"),
            BarColumn(bar_width=None, complete_style="cyan", finished_style="cyan"),
            MofNCompleteColumn(),
            TextColumn("{task.fields[left]}", style="dim"),
            console=console,
            expand=True,
        )
        self._task: TaskID | None = None

    def stage(self, name: str, total: int, done: int = 0, *, unit: str = "step") -> None:
        self.end_stage()
        self._task = self._bar.add_task(name, total=total, completed=done, left="")
        if self._live is None:
            self._live = Live(console=self._console, refresh_per_second=8, transient=True)
            self._live.start()
        super().stage(name, total, done, unit=unit)

    def end_stage(self) -> None:
        if self._task is not None:
            self._bar.remove_task(self._task)
            self._task = None
        super().end_stage()

    def say(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def show(self) -> None:
        if self._live is None or self._task is None:
            return
        left = self.remaining()
        self._bar.update(self._task, completed=self._done, left="" if left is None else f"{duration(left)} left")
        self._live.update(Group(self._bar, Text(f"          {self.detail()}", style="dim", no_wrap=True)))

    def close(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None


def progress_on(console: Console) -> Progress:
    """The display that suits where it is shown."""
    return LiveProgress(console) if console.is_terminal and not console.is_dumb_terminal else PlainProgress(console)


def duration(seconds: float) -> str:
    """`0:07`, `2:31`, `1:04:09`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
