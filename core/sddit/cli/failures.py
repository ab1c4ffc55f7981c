"""How a command ends when it cannot go on: the message, the crash log, the exit status."""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from dataclasses import replace
from pathlib import Path

import click

from sddit.cli.frame import State, error_console
from sddit.errors import Problem, SdditError, exit_status, printable
from sddit.memory import out_of_memory, ran_out
from sddit.plugins import host, said
from sddit.training.durable import storage_error

BUG = 1
INTERRUPTED = 130


def of_the_user(failure: SdditError, state: State) -> int:
    """Something that the person who typed can mend: every problem on stderr."""
    for problem in failure.problems:
        print_problem(problem)
    keep(failure, state)
    return failure.exit_status


def of_code(failure: Exception, state: State) -> int:
    """A mistake in code: in a plugin's, if one of its lines was the last of anybody's but a library's; else in ours."""
    what = said(failure)
    frames = traceback.extract_tb(failure.__traceback__)
    for frame in reversed(frames):
        if row := host().owner_of(frame.filename):
            fix = "mend the plugin; --debug shows the traceback"
            problem = Problem(
                "SD-P221",
                f"plugin {row.name!r} raised an error",
                where=f"{frame.filename}:{frame.lineno}",
                got=what,
                fix=fix,
            )
            print_problem(problem)
            keep(failure, state)
            return exit_status(problem.code)
    if unfit := misfit(failure):
        print_problem(unfit)
        keep(failure, state)
        return exit_status(unfit.code)
    if ran_out(failure):
        less = "ask for fewer images at once, or free some memory"
        return of_the_user(out_of_memory(failure, state.progress.name or "this command", what, less), state)
    if isinstance(failure, OSError) and state.progress.folder is None:
        return of_the_system(failure, state)
    out = error_console()
    out.print(f"error: a bug in the toolkit: {printable(what)}", style="bold red", soft_wrap=True)
    out.print(f"  at:     {frames[-1].filename}:{frames[-1].lineno}", soft_wrap=True)
    if not keep(failure, state) and not state.debug:
        out.print(
            "  fix:    none known; please report it with what the same command prints with --debug", soft_wrap=True
        )
    return BUG


def of_the_system(failure: OSError, state: State) -> int:
    """What the operating system refused outside of a run: a file, a folder, or the output itself."""
    if failure.filename is None:
        leave_quietly()  # the output: what is still to be written to it would fail again at the end
    problem = storage_error(failure, Path(failure.filename or "output")).problems[0]
    if problem.code.startswith("SD-F"):
        problem = replace(
            problem,
            code="SD-F707",
            what="a file or folder cannot be used",
            fix="mend its permissions or choose another path",
        )
    print_problem(problem)
    keep(failure, state)
    return exit_status(problem.code)


def misfit(failure: Exception) -> Problem | None:
    """A third party's component that cannot be called as its contract says: the error has no line of the component's."""
    name = getattr(failure, "component", "")
    row = host().rows.get(name.rpartition("/")[0])
    if row is None or row.builtin:
        return None
    return Problem(
        "SD-P220",
        f"component {name!r} cannot be used as its contract says",
        where=row.file or row.name,
        got=said(failure),
        expect="the arguments that sddit.interfaces states for its kind; further ones are taken by **_",
        fix=f"sddit.testing.check_plugin({(row.file or row.name)!r}) tries each part of the contract",
    )


def interrupted() -> int:
    """Ctrl-C where there is nothing to save."""
    click.echo("interrupted", err=True)
    return INTERRUPTED


def leave_quietly() -> int:
    """The reader of our output went away, as `head` does: that is no failure."""
    with contextlib.suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def print_problem(problem: Problem) -> None:
    """One problem on stderr, its head in red on a terminal."""
    head, *body = problem.lines()
    out = error_console()
    out.print(head, style="bold red", soft_wrap=True)
    for line in body:
        out.print(line, soft_wrap=True)


def keep(failure: BaseException, state: State) -> bool:
    """Show the traceback with --debug, and write it to the run's crash log if a run had begun. True if it was written."""
    text = "".join(traceback.format_exception(failure))
    if state.debug:
        click.echo(text, err=True, nl=False)
    if state.progress.folder is None:
        return False
    log = Path(state.progress.folder) / "crash.log"
    with contextlib.suppress(OSError):
        log.write_text(text, encoding="utf-8")
        click.echo(f"  {'log:':<8}{log}", err=True)
        return True
    return False
