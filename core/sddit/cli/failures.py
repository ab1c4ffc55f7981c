"""Report failures: print the message, write the crash log, and return the exit status."""

from __future__ import annotations

import contextlib
import errno
import select
import time
import traceback
from dataclasses import replace
from pathlib import Path

import click

from sddit.cli.output import State, print_error, redirect_to_null
from sddit.cli.streams import json_stream, restore_stderr
from sddit.distributed import processes, signals
from sddit.distributed.signals import Stopped
from sddit.errors import SdditError, describe_exception, error, out_of_memory, printable, ran_out
from sddit.interfaces.component import component_of
from sddit.plugins.host import host, third_party
from sddit.plugins.leftovers import suspects
from sddit.plugins.mistakes import suggest_fix
from sddit.plugins.shared_state import refuse_replaced_functions
from sddit.storage.atomic import replace_file, storage_error

BUG = 1
INTERRUPTED = 130


def report(failure: BaseException, state: State) -> int:
    """Print every problem that the user can fix, else a bug of ours, and return the exit status."""
    restore_stderr()
    if known := user_error(failure, state):
        lines = [line for problem in known.problems for line in problem.lines()]
        code, status = known.problems[0].code, known.exit_status
    else:
        last = traceback.extract_tb(failure.__traceback__)[-1]
        what = printable(describe_exception(failure))
        lines = [f"error: a bug in the toolkit: {what}", f"  at:     {last.filename}:{last.lineno}"]
        if state.progress.folder is None and not state.debug:
            fix = "unknown; please report it together with the output of the same command with --debug"
            lines.append(f"  fix:    {fix}")
        code, status = "", BUG
    lines += record_traceback(failure, state)
    if processes.world_size() == 1 or not state.parallel or record_rank_failure(lines, code, status, state):
        print_error(lines)
    return status


def user_error(failure: BaseException, state: State) -> SdditError | None:
    """Convert an exception to the error of its cause: a plugin, the memory or the system. None for a bug of ours."""
    try:
        refuse_replaced_functions()  # the failing code may have called the replacement
    except SdditError as replaced:
        return replaced
    if isinstance(failure, SdditError):
        return name_suspects(failure)
    got, folder = describe_exception(failure), state.progress.folder
    for frame in reversed(traceback.extract_tb(failure.__traceback__)):
        if row := host().owner_of(frame.filename):
            return error(
                "SD-P221",
                f"plugin {row.name!r} raised an error",
                where=f"{frame.filename}:{frame.lineno}",
                got=got,
                fix=suggest_fix(failure, kind=kind_of(component_of(failure)))
                or "correct the line above; --debug shows the full traceback",
            )
    if unfit := contract_error(failure):
        return unfit
    if ran_out(failure):
        where = state.progress.name or "this command"
        return out_of_memory(failure, where, got, "use a smaller batch of images, or free memory")
    if isinstance(failure, OSError) and failure.errno == errno.EBADF:
        return name_suspects(storage_error(failure, folder or Path("output")))
    if isinstance(failure, OSError) and folder is None:
        return system_error(failure)
    if isinstance(failure, OSError) and folder and Path(failure.filename or "").is_relative_to(folder):
        return storage_error(failure, Path(failure.filename))
    return broken_contracts()


def kind_of(component: str) -> str:
    """Return the kind of a component with this qualified name, such as `losses`, or an empty string."""
    registries = host().registries.all()
    return next((kind for kind, of_kind in registries.items() for one in of_kind if one.qualified == component), "")


def name_suspects(known: SdditError) -> SdditError:
    """Add to SD-P228, where it is about a file, the plugins that may have closed it."""
    return SdditError(
        *(
            replace(problem, what=problem.what + suspects())
            if problem.code == "SD-P228" and "plugin" not in problem.what
            else problem
            for problem in known.problems
        )
    ).with_traceback(known.__traceback__)


def contract_error(failure: BaseException) -> SdditError | None:
    """Return the error of a third-party component that fails outside its own lines, if it is one.

    A call with a wrong signature fails before it reaches the component, other mistakes inside torch.
    """
    name = component_of(failure)
    row = host().rows.get(name.rpartition("/")[0])
    if row is None or row.builtin:
        return None
    file, kind = row.file or row.name, kind_of(name)
    if not isinstance(failure, TypeError):
        fix = suggest_fix(failure, kind=kind) or f"run  sddit-run check {file}  to test each part of its contract"
        what = f"component {name!r} of a plugin raised an error"
        return error("SD-P221", what, where=file, got=describe_exception(failure), fix=fix)
    return error(
        "SD-P220",
        f"component {name!r} does not have the signature of its contract",
        where=file,
        got=describe_exception(failure),
        expect="the arguments that sddit.interfaces lists for its kind, and **_ for further ones",
        fix=suggest_fix(failure, kind=kind) or f"run  sddit-run check {file}  to test each part of its contract",
    )


def broken_contracts() -> SdditError | None:
    """Return what the conformance kit finds in the components of plugins, if anything.

    What a component returned, such as None, fails only later, in lines of ours.
    """
    if not third_party():
        return None
    from sddit.testing.kit import contract_problems

    components = [component for registry in host().registries.all().values() for component in registry]
    problems = [problem for component in components for problem in contract_problems(component)]
    return SdditError(*dict.fromkeys(problems)) if problems else None


def system_error(failure: OSError) -> SdditError:
    """Return the error of a file, a folder or the output itself, outside of a run folder."""
    if isinstance(failure, FileNotFoundError) and not current_folder_exists():
        what, got = "the current folder no longer exists", failure.strerror or ""
        return error("SD-F707", what, where="current folder", got=got, fix="cd to an existing folder")
    if failure.filename is None:
        redirect_to_null(json_stream())  # the output itself: flushing it at exit would fail again
    known = storage_error(failure, Path(failure.filename or "output"))
    [problem] = known.problems
    if not problem.code.startswith("SD-F"):
        return known
    what, fix = "a file or folder cannot be used", "fix the file permissions or choose another path"
    return SdditError(replace(problem, code="SD-F707", what=what, fix=fix))


def current_folder_exists() -> bool:
    try:
        return Path.cwd().is_dir()
    except FileNotFoundError:
        return False


def raised_by_plugin(end: BaseException) -> bool:
    """Return whether a plugin, or a library that it called, tried to end the process, which only this program may do.

    A handler of ours that raises for a signal may have interrupted a plugin.
    """
    frames = traceback.extract_tb(end.__traceback__)
    if isinstance(end, Stopped) or (frames and Path(frames[-1].filename) == Path(signals.__file__)):
        return False
    return any(host().owner_of(frame.filename) for frame in frames)


def stdout_is_closed(broken: BrokenPipeError) -> bool:
    """Return whether the reader of our stdout is gone, rather than that of a pipe or socket of a plugin."""
    if any(host().owner_of(frame.filename) for frame in traceback.extract_tb(broken.__traceback__)):
        return False
    try:
        output = select.poll()
        output.register(json_stream().fileno(), 0)
    except (OSError, ValueError):  # not a file: in a notebook or a test
        return False
    return any(events & (select.POLLERR | select.POLLHUP) for _, events in output.poll(0))


def record_rank_failure(lines: list[str], code: str, status: int, state: State) -> bool:
    """Record the failure of this rank, one of several, and return whether this rank prints it.

    Only the first failure is printed, by our launcher if there is one.
    """
    folder = state.progress.folder
    launcher_folder = processes.launcher_folder()
    noted = processes.read_failures(folder) if folder else []
    own = processes.Failure(
        processes.rank(), code, status, state.progress.step, time.monotonic() - processes.BEGAN, tuple(lines)
    )
    processes.write_failure(own, [path for path in (folder, launcher_folder) if path])
    if launcher_folder:
        return False
    if not processes.has_launcher() and folder is None:
        return True  # no other process is known to print it
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
