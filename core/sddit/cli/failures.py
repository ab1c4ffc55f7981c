"""How a command ends when it cannot go on: the message, the crash log, the exit status."""

from __future__ import annotations

import contextlib
import os
import select
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import click

from sddit.cli.common import State, error_console, redirect_to_null
from sddit.distributed import processes
from sddit.errors import Problem, SdditError, exit_status, out_of_memory, printable, ran_out
from sddit.plugins.discovery import said
from sddit.plugins.host import host
from sddit.storage.atomic import replace_file, storage_error

BUG = 1
INTERRUPTED = 130


def of_the_user(failure: SdditError, state: State) -> int:
    """Something that the person who typed can mend: every problem on stderr."""
    return ended(failure, failure.problems, failure.exit_status, state)


def of_code(failure: BaseException, state: State) -> int:
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
            return ended(failure, [problem], exit_status(problem.code), state)
    if unfit := misfit(failure):
        return ended(failure, [unfit], exit_status(unfit.code), state)
    if ran_out(failure):
        less = "ask for fewer images at once, or free some memory"
        return of_the_user(out_of_memory(failure, state.progress.name or "this command", what, less), state)
    if isinstance(failure, OSError):
        if state.progress.folder is None:
            return of_the_system(failure, state)
        if Path(failure.filename or "").is_relative_to(state.progress.folder):
            return of_the_user(storage_error(failure, Path(failure.filename)), state)
    lines = [f"error: a bug in the toolkit: {printable(what)}", f"  at:     {frames[-1].filename}:{frames[-1].lineno}"]
    if state.progress.folder is None and not state.debug:
        lines.append("  fix:    none known; please report it with what the same command prints with --debug")
    tell(lines, "", BUG, failure, state)
    return BUG


def of_the_system(failure: OSError, state: State) -> int:
    """What the operating system refused outside of a run: a file, a folder, or the output itself."""
    if isinstance(failure, FileNotFoundError) and not here():
        gone = Problem(
            "SD-F707",
            "the current folder is not there any longer",
            where="the folder in which the command was typed",
            got=failure.strerror or "",
            fix="cd to one that is there",
        )
        return ended(failure, [gone], exit_status(gone.code), state)
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
    return ended(failure, [problem], exit_status(problem.code), state)


def ended_by_a_plugin(end: SystemExit) -> bool:
    """Whether it was a plugin's own line that asked to end the process, which is ours to do."""
    frames = traceback.extract_tb(end.__traceback__)
    return any(host().owner_of(frame.filename) for frame in frames[-1:])


def misfit(failure: BaseException) -> Problem | None:
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


def here() -> bool:
    """Whether the current folder is still there."""
    try:
        return Path.cwd().is_dir()
    except FileNotFoundError:
        return False


def interrupted() -> int:
    """Ctrl-C where there is nothing to save."""
    click.echo("interrupted", err=True)
    return INTERRUPTED


def reader_gone(broken: BrokenPipeError) -> bool:
    """Whether it is our own stdout that nobody reads any longer, rather than a pipe or a socket of a plugin."""
    if any(host().owner_of(frame.filename) for frame in traceback.extract_tb(broken.__traceback__)):
        return False
    try:
        output = select.poll()
        output.register(sys.stdout.fileno(), 0)
    except (OSError, ValueError):  # no file: a notebook's, or a test's
        return False
    return any(events & (select.POLLERR | select.POLLHUP) for _, events in output.poll(0))


def leave_quietly() -> int:
    """The reader of our output went away, as `head` does: that is no failure."""
    redirect_to_null(sys.stdout)
    return 0


def ended(failure: BaseException, problems: Sequence[Problem], status: int, state: State) -> int:
    """Tell every problem; the status to end with."""
    tell([line for problem in problems for line in problem.lines()], problems[0].code, status, failure, state)
    return status


def tell(lines: list[str], code: str, status: int, failure: BaseException, state: State) -> None:
    """A message on stderr, the heads of problems in red on a terminal; and the traceback where it is looked for.

    Of several processes each notes its failure, and the one that was first is told: by the launcher, if it is ours.
    """
    lines = [*lines, *keep(failure, state)]
    if processes.count() > 1 and not tell_of_several(lines, code, status, state):
        return
    out = error_console()
    for line in lines:
        out.print(line, style=None if line.startswith(" ") else "bold red", soft_wrap=True)


def tell_of_several(lines: list[str], code: str, status: int, state: State) -> bool:
    """Note the failure of this rank. Returns whether it is for this rank to tell it."""
    folder = state.progress.folder
    watched = os.environ.get(processes.FAILURES)
    noted = processes.failures_in(folder) if folder else []
    own = processes.Failure(
        processes.rank(), code, status, state.progress.step, time.monotonic() - processes.BEGAN, tuple(lines)
    )
    processes.note(own, [Path(place) for place in (folder, watched) if place])
    if watched:
        return False
    same = [other for other in noted if code in processes.PEER_LOST or (other.code, other.step) == (code, own.step)]
    return not same and (folder is not None or processes.local_rank() == 0)


def keep(failure: BaseException, state: State) -> list[str]:
    """Show the traceback with --debug, and write it to the run's crash log if a run had begun. Says where that is."""
    text = "".join(traceback.format_exception(failure))
    if state.debug:
        click.echo(text, err=True, nl=False)
    if state.progress.folder is None:
        return []
    log = Path(state.progress.folder) / (f"crash-{processes.rank()}.log" if processes.rank() else "crash.log")
    with contextlib.suppress(SdditError):  # a link of this name is replaced, not followed
        replace_file(log, text.encode(errors="backslashreplace"))
        return [f"  {'log:':<8}{log}"]
    return []
