"""Report failures: print the message, write the crash log, and return the exit status."""

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
from sddit.errors import Problem, SdditError, describe_exception, exit_status, out_of_memory, printable, ran_out
from sddit.interfaces.component import component_of
from sddit.plugins.host import host
from sddit.storage.atomic import replace_file, storage_error

BUG = 1
INTERRUPTED = 130


def report_user_error(failure: SdditError, state: State) -> int:
    """Print every problem that the user can fix, and return the exit status."""
    return report_problems(failure, failure.problems, failure.exit_status, state)


def report_code_error(failure: BaseException, state: State) -> int:
    """Report an unexpected exception: as the error of a plugin with code in the traceback, else as a bug of ours."""
    what = describe_exception(failure)
    frames = traceback.extract_tb(failure.__traceback__)
    for frame in reversed(frames):
        if row := host().owner_of(frame.filename):
            fix = "correct the line above; --debug shows the full traceback"
            problem = Problem(
                "SD-P221",
                f"plugin {row.name!r} raised an error",
                where=f"{frame.filename}:{frame.lineno}",
                got=what,
                fix=fix,
            )
            return report_problems(failure, [problem], exit_status(problem.code), state)
    if unfit := contract_problem(failure):
        return report_problems(failure, [unfit], exit_status(unfit.code), state)
    if ran_out(failure):
        fix = "use a smaller batch of images, or free memory"
        return report_user_error(out_of_memory(failure, state.progress.name or "this command", what, fix), state)
    if isinstance(failure, OSError):
        if state.progress.folder is None:
            return report_system_error(failure, state)
        if Path(failure.filename or "").is_relative_to(state.progress.folder):
            return report_user_error(storage_error(failure, Path(failure.filename)), state)
    last = frames[-1]
    lines = [f"error: a bug in the toolkit: {printable(what)}", f"  at:     {last.filename}:{last.lineno}"]
    if state.progress.folder is None and not state.debug:
        lines.append("  fix:    unknown; please report it together with the output of the same command with --debug")
    print_message(lines, "", BUG, failure, state)
    return BUG


def report_system_error(failure: OSError, state: State) -> int:
    """Report an error of the operating system outside of a run: a file, a folder, or the output itself."""
    if isinstance(failure, FileNotFoundError) and not current_folder_exists():
        missing = Problem(
            "SD-F707",
            "the current folder no longer exists",
            where="current folder",
            got=failure.strerror or "",
            fix="cd to an existing folder",
        )
        return report_problems(failure, [missing], exit_status(missing.code), state)
    if failure.filename is None:
        ignore_broken_pipe()  # the output itself: flushing it at exit would fail again
    problem = storage_error(failure, Path(failure.filename or "output")).problems[0]
    if problem.code.startswith("SD-F"):
        problem = replace(
            problem,
            code="SD-F707",
            what="a file or folder cannot be used",
            fix="fix the file permissions or choose another path",
        )
    return report_problems(failure, [problem], exit_status(problem.code), state)


def raised_by_plugin(end: SystemExit) -> bool:
    """Return whether a plugin's own code tried to end the process, which only this program may do."""
    frames = traceback.extract_tb(end.__traceback__)
    return any(host().owner_of(frame.filename) for frame in frames[-1:])


def contract_problem(failure: BaseException) -> Problem | None:
    """Return the problem of a third-party component whose signature breaks its contract, if it is one.

    Such a call fails before it reaches the component, so the traceback has no line of the plugin.
    """
    name = component_of(failure)
    row = host().rows.get(name.rpartition("/")[0])
    if row is None or row.builtin:
        return None
    return Problem(
        "SD-P220",
        f"component {name!r} does not have the signature of its contract",
        where=row.file or row.name,
        got=describe_exception(failure),
        expect="the arguments that sddit.interfaces lists for its kind, and **_ for further ones",
        fix=f"run sddit.testing.check_plugin({(row.file or row.name)!r}), which tests each part of the contract",
    )


def current_folder_exists() -> bool:
    """Return whether the current folder still exists."""
    try:
        return Path.cwd().is_dir()
    except FileNotFoundError:
        return False


def report_interrupt() -> int:
    """Report Ctrl-C in a command that has nothing to save."""
    click.echo("interrupted", err=True)
    return INTERRUPTED


def stdout_is_closed(broken: BrokenPipeError) -> bool:
    """Return whether the reader of our stdout is gone, rather than that of a pipe or socket of a plugin."""
    if any(host().owner_of(frame.filename) for frame in traceback.extract_tb(broken.__traceback__)):
        return False
    try:
        output = select.poll()
        output.register(sys.stdout.fileno(), 0)
    except (OSError, ValueError):  # not a file: in a notebook or a test
        return False
    return any(events & (select.POLLERR | select.POLLHUP) for _, events in output.poll(0))


def ignore_broken_pipe() -> int:
    """Discard further output and return 0: a reader that closes early, such as `head`, is not a failure."""
    redirect_to_null(sys.stdout)
    return 0


def report_problems(failure: BaseException, problems: Sequence[Problem], status: int, state: State) -> int:
    """Print every problem and return the exit status."""
    print_message([line for problem in problems for line in problem.lines()], problems[0].code, status, failure, state)
    return status


def print_message(lines: list[str], code: str, status: int, failure: BaseException, state: State) -> None:
    """Print a message on stderr, first lines of problems in red, and record the traceback.

    Each of several processes records its failure; only the first one is printed, by our launcher if there is one.
    """
    lines = [*lines, *record_traceback(failure, state)]
    if processes.world_size() > 1 and not record_rank_failure(lines, code, status, state):
        return
    out = error_console()
    for line in lines:
        out.print(line, style=None if line.startswith(" ") else "bold red", soft_wrap=True)


def record_rank_failure(lines: list[str], code: str, status: int, state: State) -> bool:
    """Record the failure of this rank, and return whether this rank prints it."""
    folder = state.progress.folder
    launcher_folder = os.environ.get(processes.FAILURES)
    noted = processes.read_failures(folder) if folder else []
    own = processes.Failure(
        processes.rank(), code, status, state.progress.step, time.monotonic() - processes.BEGAN, tuple(lines)
    )
    processes.write_failure(own, [Path(path) for path in (folder, launcher_folder) if path])
    if launcher_folder:
        return False
    same = [other for other in noted if code in processes.PEER_LOST or (other.code, other.step) == (code, own.step)]
    return not same and (folder is not None or processes.local_rank() == 0)


def record_traceback(failure: BaseException, state: State) -> list[str]:
    """Print the traceback with --debug, and write it to the crash log of a run. Return a line with its path, if any."""
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
