"""Print texts, tables, JSON and the progress of a command, also where an output is closed or full."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TextIO, cast

import click
from rich.console import Console
from rich.table import Table

from sddit.cli.streams import json_stream
from sddit.distributed import processes
from sddit.errors import printable
from sddit.progress import Progress, progress_on
from sddit.recipes.parsing import quoted

PIPE_WIDTH = 240
"""Columns of output that is not a terminal: files and pipes are not folded at 80."""
MAX_TEXT = 100_000  # characters of a value that is printed in full


@dataclass(slots=True)
class State:
    """State of one call of the command, as error handling needs it."""

    debug: bool = False
    parallel: bool = False  # whether several processes may execute this command together
    progress: Progress = field(default_factory=Progress)  # its folder takes the crash log


def current_state() -> State:
    return click.get_current_context().ensure_object(State)


@contextlib.contextmanager
def show_progress(out: Console) -> Iterator[Progress]:
    """Show the progress on rank 0, and let error handling know it."""
    with progress_on(out) if processes.rank() == 0 else Progress() as progress:
        current_state().progress = progress
        yield progress


class Output(Console):
    """A console that raises BrokenPipeError when its reader is gone, so that the command ends quietly."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


class UnfailingStream:
    """A stream whose errors are ignored: a closed pipe, full disk or lost terminal must not end a training run."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError:
            redirect_to_null(self._stream)
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError:
            redirect_to_null(self._stream)


def redirect_to_null(stream: TextIO) -> None:
    """Redirect a stream that cannot be written to the null device, so that later writes succeed."""
    with contextlib.suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def console(file: TextIO | None = None) -> Console:
    """Return a console: with colours and the terminal's width on a terminal, with plain long lines elsewhere."""
    stream = file or sys.stdout
    width = None if stream.isatty() else PIPE_WIDTH
    return Output(file=stream, width=width, highlight=False, markup=False, emoji=False, soft_wrap=False)


def work_console() -> Console:
    """Return a console on stdout for long work, which continues if stdout can no longer be written."""
    return console(cast("TextIO", UnfailingStream(sys.stdout)))


def error_console() -> Console:
    """Return a console on stderr, which ignores write errors."""
    return console(cast("TextIO", UnfailingStream(sys.stderr)))


def notice(text: str) -> None:
    """Print a line on stderr. Write errors are ignored."""
    click.echo(printable(text), file=cast("TextIO", UnfailingStream(sys.stderr)))


def echo(text: object) -> None:
    """Print a line on stdout, with what could act on a terminal escaped: paths may have any characters."""
    click.echo(printable(str(text)))


def print_error(lines: Iterable[str]) -> None:
    """Print problems on stderr, the first line of each in red."""
    out = error_console()
    for line in lines:
        out.print(line, style=None if line.startswith(" ") else "bold red", soft_wrap=True)


def print_json(value: Any) -> None:
    click.echo(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False), file=json_stream())


def table(*headings: str) -> Table:
    """Return an empty table without lines, whose columns fold instead of being cut."""
    result = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold", show_header=any(headings))
    for heading in headings:
        result.add_column(heading, overflow="fold")
    return result


def print_table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    lines = table(*headings)
    for row in rows:
        lines.add_row(*row)
    console().print(lines)


def setting_text(value: Any, max_length: int = MAX_TEXT) -> str:
    """Return a value as a recipe would write it; `not set` for None."""
    return "not set" if value is None else quoted(value, max_length)
