"""Share state, consoles, JSON output, common options and help with examples between the commands."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO, TypeVar, cast

import click
from rich.console import Console
from rich.table import Table

from sddit.errors import printable
from sddit.exchange.layouts import OURS, known_layouts
from sddit.progress import Progress

F = TypeVar("F", bound=Callable[..., Any])

PIPE_WIDTH = 240
"""Columns of output that is not a terminal: files and pipes are not folded at 80."""


@dataclass(slots=True)
class State:
    """State of one call of the command, as error handling needs it."""

    debug: bool = False
    progress: Progress = field(default_factory=Progress)  # its folder takes the crash log


class SdditCommand(click.Command):
    """A click command with `--debug`, and with examples at the end of its help."""

    def __init__(self, *args: Any, examples: str = "", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.examples = examples
        self.params.append(debug_option())

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        if self.examples:
            write_block(formatter, "Examples", self.examples)


def debug_option() -> click.Option:
    """Return `--debug`, which makes error handling print tracebacks."""

    def record(ctx: click.Context, _: click.Parameter, value: bool) -> None:
        state_of(ctx).debug |= value

    return click.Option(
        ["--debug"], is_flag=True, expose_value=False, callback=record, help="Show full tracebacks of errors."
    )


def device_option(function: F) -> F:
    """Add `--device`."""
    return click.option(
        "--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True, help="Device to compute on."
    )(function)


def json_option(text: str = "Print JSON.") -> Callable[[F], F]:
    """Add `--json`, passed to the function as `as_json`."""
    return click.option("--json", "as_json", is_flag=True, help=text)


JSON_AND_PROGRESS = "Print JSON; progress goes to stderr."


class PathOption(click.Path):
    """A path. An empty one is refused: it would mean the current folder."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(path_type=Path, **settings)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return super().convert(non_empty(value), param, ctx)


def non_empty(value: Any) -> Any:
    """Refuse an empty name or path: it usually comes from an unset shell variable."""
    if value == "":
        raise click.BadParameter("must not be empty (unset shell variable?)")
    return value


def write_block(formatter: click.HelpFormatter, title: str, text: str) -> None:
    """Write a section of help without rewrapping its lines."""
    with formatter.section(title):
        formatter.write("".join(f"{' ' * formatter.current_indent}{line}\n" for line in text.strip().splitlines()))


def state_of(ctx: click.Context) -> State:
    """Return the state of the current call."""
    return ctx.ensure_object(State)


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
    """Return a console on stderr for messages, which ignores write errors."""
    return console(cast("TextIO", UnfailingStream(sys.stderr)))


def table(*headings: str) -> Table:
    """Return an empty table without lines, whose columns fold instead of being cut."""
    result = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold", show_edge=False)
    for heading in headings:
        result.add_column(heading, overflow="fold")
    return result


def setting_text(value: Any) -> str:
    """Return a value as a recipe would write it; `not set` for None."""
    match value:
        case None:
            return "not set"
        case bool():
            return str(value).lower()
        case str():
            return f'"{value}"'
        case dict() if not value:
            return "{}"
        case dict():
            return "{ " + ", ".join(f"{key} = {setting_text(item)}" for key, item in value.items()) + " }"
        case list() | tuple():
            return f"[{', '.join(map(setting_text, value))}]"
        case _:
            return str(value)  # 1.0 keeps its point: an integer 1 is a step, 1.0 the full run


def print_json(value: Any) -> None:
    """Print one JSON document on stdout."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False))


def notice(text: str) -> None:
    """Print a line on stderr. Write errors are ignored."""
    click.echo(printable(text), file=cast("TextIO", UnfailingStream(sys.stderr)))


class LayoutOption(click.Option):
    """An option whose help lists the published layouts of all plugins. They are imported only when help is shown."""

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        if (record := super().get_help_record(ctx)) is None:
            return None
        flags, text = record
        return flags, f"{text}  Published: {', '.join(name for name in known_layouts() if name != OURS)}."
