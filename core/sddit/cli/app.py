"""Run `sddit-run`: dispatch to a recipe or a command, and turn failures into short messages and exit statuses."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import click

from sddit import __version__
from sddit.cli import failures
from sddit.cli.commands.bench import bench
from sddit.cli.commands.check import check
from sddit.cli.commands.evaluate import evaluate
from sddit.cli.commands.explain import explain
from sddit.cli.commands.export import export
from sddit.cli.commands.import_weights import import_weights
from sddit.cli.commands.new_plugin import new_plugin
from sddit.cli.commands.plugins import plugins
from sddit.cli.commands.publish import publish
from sddit.cli.commands.run import run
from sddit.cli.commands.sample import sample
from sddit.cli.commands.show import show
from sddit.cli.commands.table import table
from sddit.cli.commands.verify import verify
from sddit.cli.options import DEBUG, write_examples
from sddit.cli.output import State, notice, redirect_to_null
from sddit.distributed import processes
from sddit.distributed.signals import end_at_signals

COMMANDS = (
    plugins,
    show,
    sample,
    evaluate,
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
    open_outputs()
    warnings.showwarning = lambda message, *_: notice(f"warning: {message}")  # without the source line
    status = call(sys.argv[1:] if arguments is None else arguments)
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        redirect_to_null(sys.stdout)
    except OSError as full:
        status = failures.report(full, State())
    processes.exit_process(status)


def limit_spinning() -> None:
    """Let CPU threads that wait for each other spin briefly, then sleep. Call before torch is imported.

    libgomp spins for milliseconds by default and slows other runs on the same cores. By default a quickstart step on
    two cores takes 0.09 s alone and 5 to 9 s next to two other runs; with this count, 0.09 s and 0.2 s.
    OMP_WAIT_POLICY=PASSIVE also helps, but takes 0.14 s alone.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")


def open_outputs() -> None:
    """Replace closed outputs by the null device, and escape characters that an output cannot encode."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115 (stays open)
        getattr(sys, name).reconfigure(errors="backslashreplace")


def call(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit status. Every failure is reported here."""
    state = State()
    try:
        with cli.make_context("sddit-run", list(arguments), obj=state) as context:
            cli.invoke(context)
    except click.exceptions.Exit as done:
        return done.exit_code
    except click.UsageError as usage:
        if usage.ctx is not None and usage.ctx.command is run:
            usage.ctx = usage.ctx.parent  # its usage names recipes and commands
        usage.show()
        return usage.exit_code
    except (KeyboardInterrupt, click.Abort):
        notice("interrupted")
        return failures.INTERRUPTED
    except BaseException as failure:  # a plugin may raise anything
        if isinstance(failure, SystemExit) and not failures.raised_by_plugin(failure):
            raise
        if isinstance(failure, BrokenPipeError) and failures.stdout_is_closed(failure):
            redirect_to_null(sys.stdout)  # a reader that closes early, such as `head`, is not a failure
            return 0
        return failures.report(failure, state)
    return 0
