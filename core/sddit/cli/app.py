"""Run `sddit-run`: dispatch to a recipe or a command, and turn failures into short messages and exit statuses."""

from __future__ import annotations

import os
import signal
import sys
import warnings
from collections.abc import Sequence
from typing import NoReturn

import click

from sddit import __version__
from sddit.cli import failures
from sddit.cli.commands.bench import bench
from sddit.cli.commands.check import check
from sddit.cli.commands.ema import ema
from sddit.cli.commands.encode import encode
from sddit.cli.commands.evaluate import evaluate
from sddit.cli.commands.explain import explain
from sddit.cli.commands.export import export
from sddit.cli.commands.import_weights import import_weights
from sddit.cli.commands.new_plugin import new_plugin
from sddit.cli.commands.pack import pack
from sddit.cli.commands.plugins import plugins
from sddit.cli.commands.publish import publish
from sddit.cli.commands.reference import reference
from sddit.cli.commands.run import run
from sddit.cli.commands.sample import sample
from sddit.cli.commands.show import show
from sddit.cli.commands.table import table
from sddit.cli.commands.verify import verify
from sddit.cli.options import DEBUG, write_examples
from sddit.cli.output import State, notice, redirect_to_null
from sddit.cli.streams import flush_outputs, json_stream, open_outputs, reserve_stdout
from sddit.distributed import processes
from sddit.distributed.signals import REQUESTS, end_at_signals, set_handlers
from sddit.plugins.leftovers import end_if_forked, end_in_time, exit_raised

COMMANDS = (
    plugins,
    show,
    sample,
    evaluate,
    ema,
    encode,
    pack,
    reference,
    table,
    publish,
    export,
    import_weights,
    bench,
    verify,
    new_plugin,
    check,
    explain,
)
ABOUT = (
    "Train the diffusion transformer that a recipe describes, sample and score it, and write a report. "
    "Rerun the same command to resume."
)


class Commands(click.Group):
    """Group of commands. A first word that is not a command is a recipe, for `run`."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] in self.commands:
            return super().resolve_command(ctx, args)
        return run.name, run, args

    def format_usage(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        formatter.write_usage("sddit-run", "RECIPE [KEY=VALUE ...] [OPTIONS]")
        formatter.write_usage("sddit-run", "COMMAND ...", prefix="       ")

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        write_examples(formatter, run.examples)
        options = [option for option in [*run.params, *self.params] if isinstance(option, click.Option)]
        records = {option.name: record for option in options if (record := option.get_help_record(ctx))}
        with formatter.section("Options"):
            formatter.write_dl(list(records.values()))
        with formatter.section("Commands"):
            formatter.write_dl([(command.name or "", command.get_short_help_str(limit=64)) for command in COMMANDS])
        formatter.write_paragraph()
        formatter.write_text("`sddit-run COMMAND --help` shows the options of a command, with examples.")


cli = Commands(
    "sddit-run",
    commands={command.name: command for command in COMMANDS if command.name},
    help=ABOUT,
    params=[DEBUG],
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"], "ignore_unknown_options": True, "show_default": True},
)
click.version_option(__version__, prog_name="sddit-run")(cli)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the console script and end the process with a documented exit status."""
    end_at_signals()
    limit_spinning()
    if processes.world_size() > 1:
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")  # before torch is imported: its C++ stacks end as errors
    open_outputs()
    warnings.showwarning = lambda message, *_: notice(f"warning: {message}")  # without the source line
    words = sys.argv[1:] if arguments is None else arguments
    if "--json" in words and not {"--help", "-h"} & set(words):
        reserve_stdout()
    try:
        status = call(words)
    except SystemExit as stopped:  # by a signal
        status = int(stopped.code or 0)
    try:
        flush_outputs()
    except BrokenPipeError:
        redirect_to_null(json_stream())
    except OSError as full:
        status = failures.report(full, State())
    set_handlers(dict.fromkeys(REQUESTS, signal.SIG_DFL))  # all is done: a signal needs no message
    end_in_time(status, notice)
    processes.exit_process(status)


def limit_spinning() -> None:
    """Let CPU threads that wait for each other spin briefly, then sleep. Call before torch is imported.

    libgomp spins for milliseconds by default and slows other runs on the same cores. By default a quickstart step on
    two cores takes 0.09 s alone and 5 to 9 s next to two other runs; with this count, 0.09 s and 0.2 s.
    OMP_WAIT_POLICY=PASSIVE also helps, but takes 0.14 s alone.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")


def call(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit status. Every failure is reported here."""
    state, pid = State(), os.getpid()
    try:
        with cli.make_context("sddit-run", list(arguments), obj=state) as context, exit_raised():
            cli.invoke(context)
        end_if_forked(pid)
    except BaseException as failure:  # a plugin may raise anything
        end_if_forked(pid)
        return ended_by(failure, state)
    return 0


def ended_by(failure: BaseException, state: State) -> int:
    """Report what ended a command, and return its exit status. Raises SystemExit after a signal."""
    by_plugin = failures.raised_by_plugin(failure)
    if isinstance(failure, click.exceptions.Exit) and not by_plugin:
        return failure.exit_code
    if isinstance(failure, click.UsageError) and not by_plugin:
        if failure.ctx is not None and failure.ctx.command is run:
            failure.ctx = failure.ctx.parent  # its usage names recipes and commands
        failure.show()
        return failure.exit_code
    if isinstance(failure, KeyboardInterrupt) or (isinstance(failure, click.Abort) and not by_plugin):
        notice("interrupted")
        return failures.INTERRUPTED
    if isinstance(failure, SystemExit) and not by_plugin:
        raise failure
    if isinstance(failure, BrokenPipeError) and failures.stdout_is_closed(failure):
        redirect_to_null(json_stream())  # a reader that closes early, such as `head`, is not a failure
        return 0
    return failures.report(failure, state)
