"""What every verb shares: the state of one call, consoles, JSON, and help with examples."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO, cast

import click
from rich.console import Console
from rich.table import Table

from sddit.errors import printable
from sddit.exchange.layouts import OURS, known_layouts
from sddit.progress import Progress

UNLIMITED = 240
"""Columns of output that is no terminal: files and pipes are not folded at 80."""


@dataclass(slots=True)
class State:
    """One call of the command: what the error guard needs to know of it."""

    debug: bool = False
    progress: Progress = field(default_factory=Progress)  # its folder takes the crash log


class Verb(click.Command):
    """A command with `--debug`, and with examples at the end of its help."""

    def __init__(self, *args: Any, examples: str = "", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.examples = examples
        self.params.append(debug_option())

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        if self.examples:
            write_block(formatter, "Examples", self.examples)


def debug_option() -> click.Option:
    """`--debug`, which only tells the guard to show tracebacks."""

    def note(ctx: click.Context, _: click.Parameter, value: bool) -> None:
        state_of(ctx).debug |= value

    return click.Option(
        ["--debug"], is_flag=True, expose_value=False, callback=note, help="Show full tracebacks of errors."
    )


class Place(click.Path):
    """A path. An empty one would mean the current folder."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(path_type=Path, **settings)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return super().convert(word(value), param, ctx)


def word(value: Any) -> Any:
    """The type of a name. An empty one is refused: it comes from a variable of the shell that is not set."""
    if value == "":
        raise click.BadParameter("it is empty: is a variable of the shell not set?")
    return value


def write_block(formatter: click.HelpFormatter, title: str, text: str) -> None:
    """A section whose lines are kept as they are."""
    with formatter.section(title):
        formatter.write("".join(f"{' ' * formatter.current_indent}{line}\n" for line in text.strip().splitlines()))


def state_of(ctx: click.Context) -> State:
    """The state of the call that runs."""
    return ctx.ensure_object(State)


class Output(Console):
    """A console whose reader may go away: the guard of the command ends it quietly."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


class Lasting:
    """A stream for work that goes on without it: a reader that went, a full disk or a lost terminal ends nothing."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError:
            to_nowhere(self._stream)
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError:
            to_nowhere(self._stream)


def to_nowhere(stream: TextIO) -> None:
    """Let an output that the system refuses swallow what is still to be written to it."""
    with contextlib.suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def console(file: TextIO | None = None) -> Console:
    """Where a verb prints: colours and the terminal's width on a terminal, plain long lines elsewhere."""
    stream = file or sys.stdout
    width = None if stream.isatty() else UNLIMITED
    return Output(file=stream, width=width, highlight=False, markup=False, emoji=False, soft_wrap=False)


def work_console() -> Console:
    """Where long work says how far it is, on stdout; it goes on if that cannot be written to any more."""
    return console(cast("TextIO", Lasting(sys.stdout)))


def error_console() -> Console:
    """The same for messages, on stderr."""
    return console(cast("TextIO", Lasting(sys.stderr)))


def table(*headings: str) -> Table:
    """A table without lines, whose columns fold rather than cut."""
    made = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold", show_edge=False)
    for heading in headings:
        made.add_column(heading, overflow="fold")
    return made


def print_json(value: Any) -> None:
    """One JSON document on stdout."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False))


def notice(text: str) -> None:
    """A line on stderr. Work goes on where that cannot be written to any more."""
    click.echo(printable(text), file=cast("TextIO", Lasting(sys.stderr)))


class LayoutOption(click.Option):
    """Its help ends with the published layouts of the plugins, which are looked for once somebody asks."""

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        if (record := super().get_help_record(ctx)) is None:
            return None
        flags, text = record
        return flags, f"{text}  Published: {', '.join(name for name in known_layouts() if name != OURS)}."
