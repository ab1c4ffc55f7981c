"""Show the progress of a run: a live display on a terminal, occasional lines elsewhere, or nothing."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from sddit.errors import printable
from sddit.formatting import format_duration

Clock = Callable[[], float]
LINE_EVERY = 10.0  # seconds between plain lines of a short stage
LINE_FRACTION = 0.02  # of a long stage between plain lines
NAME_WIDTH = 9  # of the longest stage name, to align the columns


class Progress:
    """A silent display, for notebooks and tests. Subclasses override `show` and `close`, and have a console.

    A run calls `stage` when a part of it begins, `advance` or `tick` as it proceeds, and `note` and `warn` for
    permanent lines. It sets `folder` as soon as it exists, so that a crash log can be written there.
    """

    def __init__(self, console: Console | None = None, clock: Clock = time.monotonic) -> None:
        self.folder: Path | None = None
        self.step = 0  # optimizer steps taken, for failure records
        self.name = ""  # the current stage; empty: none
        self.total: int | None = None
        self.done = 0
        self.values: dict[str, float] = {}
        self._console, self._clock = console, clock
        self._begun, self._first = 0.0, 0
        self._next = 0.0  # seconds from the start of the stage to the next plain line

    def stage(self, name: str, total: int | None = None, done: int = 0) -> None:
        """Begin a part of the run: `training`, `sampling`, `scoring`, `report`.

        Args:
            name: label of the stage.
            total: units of the entire stage; None if unknown.
            done: units already done.
        """
        self.end_stage()
        self.name, self.total, self.done, self.values = name, total, done, {}
        self._begun, self._first, self._next = self._clock(), done, 0.0
        self.show()

    def advance(self, done: int, values: Mapping[str, float] | None = None) -> None:
        """Set the number of units done. Of `values`, `loss/<label>` and `images_per_second` are shown."""
        self.done = done
        self.values.update(values or {})
        self.show()

    def tick(self) -> None:
        """Count one more unit as done."""
        self.advance(self.done + 1)

    def end_stage(self) -> None:
        """End the current stage."""
        if self.name:
            self.note(columns(self.name, f"done in {format_duration(self.elapsed)}", self.detail()))
            self.name = ""

    def note(self, text: str, style: str = "") -> None:
        """Print a permanent line."""
        if self._console is not None:
            self._console.print(printable(text), style=style, markup=False, highlight=False, soft_wrap=True)

    def warn(self, text: str) -> None:
        """Print a permanent warning."""
        self.note(f"warning: {text}", style="yellow")

    def show(self) -> None:
        """Update the display."""

    def close(self) -> None:
        """Restore the terminal, also after an exception."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *failure: object) -> None:
        if kind is None:
            self.end_stage()
        self.close()

    @property
    def elapsed(self) -> float:
        """Seconds since the stage began in this process."""
        return self._clock() - self._begun

    def remaining(self) -> float | None:
        """Estimate the seconds until the stage ends from its speed so far; None before the first unit."""
        if self.total is None or self.done <= self._first:
            return None
        return self.elapsed / (self.done - self._first) * (self.total - self.done)

    def detail(self) -> str:
        """Return the losses and the speed: `denoise 0.182   discrimination 6.1   1,240 images/s`."""
        terms = [(name, value) for name, value in self.values.items() if re.fullmatch(r"loss/[\w-]+", name)]
        parts = [f"{name.removeprefix('loss/')} {value:.4g}" for name, value in terms]
        if "images_per_second" in self.values:
            parts.append(f"{self.values['images_per_second']:,.0f} images/s")
        return "   ".join(parts)


class PlainProgress(Progress):
    """A display of plain lines: one at the first update, then every ten seconds, or every 2 % of a long stage."""

    def show(self) -> None:
        left = self.remaining()
        if left is None or self.elapsed < self._next:
            return
        self._next = self.elapsed + max(LINE_EVERY, LINE_FRACTION * (self.elapsed + left))
        self.note(columns(self.name, f"{self.done:,}/{self.total:,}", self.detail(), f"{format_duration(left)} left"))


class LiveProgress(Progress):
    """A progress bar with the remaining time, and below it each loss."""

    _live: Live | None = None

    def show(self) -> None:
        if self._live is None:
            self._live = Live(console=self._console, refresh_per_second=8, transient=True)
            self._live.start()
        left, total = self.remaining(), "?" if self.total is None else str(self.total)
        bar = Table.grid(padding=(0, 1), expand=True)
        bar.add_row(
            Text(f"{self.name:<{NAME_WIDTH}}", style="bold"),
            ProgressBar(self.total, self.done, complete_style="cyan", finished_style="cyan"),
            Text(f"{self.done:>{len(total)}}/{total}", style="progress.download"),
            Text("" if left is None else f"{format_duration(left)} left", style="dim"),
        )
        below = Text(f"{'':<{NAME_WIDTH}} {self.detail()}", style="dim", no_wrap=True)
        self._live.update(Group(bar, below))

    def end_stage(self) -> None:
        if self._live is not None:
            self._live.update("", refresh=True)
        super().end_stage()

    def close(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None


def progress_on(console: Console) -> Progress:
    """Return the display for a console: live on a terminal, plain lines elsewhere."""
    return LiveProgress(console) if console.is_terminal and not console.is_dumb_terminal else PlainProgress(console)


def columns(name: str, *parts: str) -> str:
    """Return the parts that are not empty, in columns: `training    120/1,000   denoise 0.182`."""
    return "   ".join([f"{name:<{NAME_WIDTH}}", *filter(None, parts)])
