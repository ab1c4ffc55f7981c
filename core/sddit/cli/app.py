"""The command itself: a recipe or a verb comes first, and one place turns every failure into a short message."""

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
from sddit.cli.common import State, debug_option, notice, write_block
from sddit.distributed import processes
from sddit.distributed.signals import end_at_signals
from sddit.errors import SdditError

VERBS = (plugins, show, sample, evaluate, table, publish, export, import_weights, bench, verify, new_plugin, explain)
ABOUT = "Train, sample and score what a recipe describes, and write a report. The same command again continues."


class Commands(click.Group):
    """Verbs, and a recipe in the place of one: whatever is no verb is handed to `run`."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] in self.commands:
            return super().resolve_command(ctx, args)
        return run.name, run, args

    def format_usage(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        formatter.write_usage("sddit-run", "RECIPE [KEY=VALUE ...] [OPTIONS]")
        formatter.write_usage("sddit-run", "VERB ...", prefix="       ")

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        write_block(formatter, "Examples", run.examples)
        options = [option for option in [*run.params, *self.params] if isinstance(option, click.Option)]
        records = {option.name: record for option in options if (record := option.get_help_record(ctx))}
        with formatter.section("Options"):
            formatter.write_dl(list(records.values()))
        with formatter.section("Verbs"):
            formatter.write_dl([(verb.name or "", verb.get_short_help_str(limit=60)) for verb in VERBS])
        formatter.write_paragraph()
        formatter.write_text("`sddit-run VERB --help` shows examples of a verb.")


cli = Commands(
    "sddit-run",
    commands={verb.name: verb for verb in VERBS if verb.name},
    help=ABOUT,
    params=[debug_option()],
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"], "ignore_unknown_options": True},
)
click.version_option(__version__, prog_name="sddit-run")(cli)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """The console script. Ends the process with a documented exit status."""
    end_at_signals()
    wait_politely()
    open_outputs()
    warnings.showwarning = lambda message, *_: notice(f"warning: {message}")  # without file, line and source
    status = call(sys.argv[1:] if arguments is None else arguments)
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        failures.leave_quietly()
    except OSError as full:
        status = failures.of_the_system(full, State())
    processes.end(status)


def wait_politely() -> None:
    """Let CPU threads that wait for each other spin briefly, then sleep. Must come before torch is imported.

    libgomp's own default spins for milliseconds: with several trainings on the same cores, each burns the time that another
    one waits for. A quickstart step on two cores, alone and beside two other trainings: by default 0.09 s and 5 to 9 s,
    with this count 0.09 s and 0.2 s. (OMP_WAIT_POLICY=PASSIVE is as polite, and takes 0.14 s alone.)
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")


def open_outputs() -> None:
    """Print to nowhere where an output is closed, and escape what an output cannot encode."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115 (open until the process ends)
        getattr(sys, name).reconfigure(errors="backslashreplace")


def call(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit status. Every failure ends here."""
    state = State()
    try:
        with cli.make_context("sddit-run", list(arguments), obj=state) as context:
            cli.invoke(context)
    except click.exceptions.Exit as done:
        return done.exit_code
    except click.UsageError as usage:
        if usage.ctx is not None and usage.ctx.command is run:
            usage.ctx = usage.ctx.parent  # whose usage names both a recipe and the verbs
        usage.show()
        return usage.exit_code
    except SdditError as failure:
        return failures.of_the_user(failure, state)
    except SystemExit as ended:
        if not failures.ended_by_a_plugin(ended):
            raise
        return failures.of_code(ended, state)
    except (KeyboardInterrupt, click.Abort):
        return failures.interrupted()
    except BaseException as bug:  # a plugin may raise anything
        if isinstance(bug, BrokenPipeError) and failures.reader_gone(bug):
            return failures.leave_quietly()
        return failures.of_code(bug, state)
    return 0
