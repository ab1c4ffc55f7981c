"""Report every mistake that a user can fix in one form: what is wrong, where, what was expected, the fix, a code.

The codes, their causes and exit statuses are in `catalogue.toml`; `sddit-run explain CODE` prints an entry.
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing to fix."""

    code: str
    what: str
    where: str = ""  # a file, a line or a dotted key
    got: str = ""
    expect: str = ""
    fix: str = ""  # what to do; empty: the catalogue's remedy

    def lines(self) -> list[str]:
        """Return the problem as printed: a head line, then the fields that are set."""
        fix = self.fix or default_fix(self.code)
        fields = {"where": self.where, "got": self.got, "expect": self.expect, "fix": fix}
        head = f"error {self.code}: {printable(self.what)}"
        body = [f"  {name + ':':<8}{printable(text)}" for name, text in fields.items() if text]
        return [head, *body, f"  {'more:':<8}sddit-run explain {self.code}"]


class SdditError(Exception):
    """One or more problems for the user: all that were found, so that they can be fixed together."""

    def __init__(self, *problems: Problem) -> None:
        if not problems:
            raise ValueError("SdditError needs at least one Problem")
        self.problems = problems
        super().__init__("\n".join("\n".join(problem.lines()) for problem in problems))

    @property
    def exit_status(self) -> int:
        """The documented exit status of the first problem."""
        return exit_status(self.problems[0].code)


def error(code: str, what: str, **fields: str) -> SdditError:
    """Return an `SdditError` with one problem."""
    return SdditError(Problem(code, what, **fields))


def raise_all(problems: Iterable[Problem]) -> None:
    """Raise one `SdditError` with all problems, if there are any."""
    if found := tuple(problems):
        raise SdditError(*found)


@cache
def catalogue() -> Mapping[str, Mapping[str, Any]]:
    """Return {code: {title, exit, cause, remedy}}; `action` is true if the remedy is the default fix."""
    return tomllib.loads(files("sddit").joinpath("catalogue.toml").read_text(encoding="utf-8"))


def exit_status(code: str) -> int:
    """Return the exit status of `code`; 1 (a bug of sddit) if it is not in the catalogue."""
    return int(catalogue().get(code, {}).get("exit", 1))


def default_fix(code: str) -> str:
    """Return the remedy of `code` if the catalogue marks it as a concrete action, or an empty string."""
    entry = catalogue().get(code, {})
    return str(entry["remedy"]) if entry.get("action") else ""


def nearest(name: str, known: Iterable[str]) -> str:
    """Return the known name closest to a misspelt one, or an empty string.

    Of close names, one of the same letters comes first: two of them were swapped.
    """
    close = difflib.get_close_matches(name, list(known))
    return next(iter(sorted(close, key=lambda one: sorted(one) != sorted(name))), "")


def one_of(name: str, known: Iterable[str], max_names: int = 12) -> str:
    """Return `one of a, b, c   (did you mean 'b'?)`, for the `expect` of a problem."""
    names = sorted(known)
    shown = ", ".join(names[:max_names]) + (", ..." if len(names) > max_names else "")
    close = nearest(name, names)
    return f"one of {shown}" + (f"   (did you mean {close!r}?)" if close else "")


def printable(text: str) -> str:
    """Return `text` with control, bidi and line-breaking characters escaped, safe for a terminal.

    Names of files that an ASCII locale could not decode are UTF-8 again, if that is what their bytes are.
    """
    with suppress(UnicodeError):
        text = text.encode("utf-8", "surrogateescape").decode("utf-8")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def message_of(failure: BaseException) -> str:
    """Return the message of an exception, also if its `__str__` fails."""
    try:
        return str(failure)
    except Exception:
        return "(no message: its __str__ fails)"


def describe_exception(failure: BaseException, max_length: int = 240) -> str:
    """Return type and message of an exception on one line of at most `max_length` characters."""
    text = " ".join(f"{type(failure).__name__}: {message_of(failure)}".split()).rstrip(": ")
    return text if len(text) <= max_length else f"{text[:max_length]} ..."


def expand_user(path: str | Path, where: str) -> Path:
    """Return a path whose leading `~` or `~user` is replaced by the home folder. Raises SD-F707 if that is unknown."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        name = Path(path).parts[0]
        whose = f"user {name[1:]!r}" if name != "~" else "this user"
        fix = "set HOME, or write the whole path" if name == "~" else f"write the whole path, or './{name}' for a name"
        expect = "a path from /, from this folder, or from the home folder of a user of this system"
        what = f"the home folder of {whose} is unknown"
        raise error("SD-F707", what, where=where, got=str(path), expect=expect, fix=fix) from None


def expand_variable(path: str, where: str) -> str:
    """Return a path whose leading `$NAME` or `${NAME}` is replaced by that environment variable.

    Raises SD-R140 if it is not set or empty.
    """
    found = re.match(r"\$(?:(\w+)|\{(\w+)\})(?=/|$)", path)
    if found is None:
        return path
    name = found[1] or found[2]
    if not (value := os.environ.get(name, "")):
        what, fix = f"the environment variable {name} is not set", f"export {name}=FOLDER, or set another path"
        raise error("SD-R140", what, where=where, got=path, expect=f"the folder that ${name} stands for", fix=fix)
    return value + path[found.end() :]


def real_path(path: Path) -> Path:
    """Return the absolute path without links. Unlike `Path.resolve`, it does not raise for links in a circle."""
    return Path(os.path.realpath(path))


HOST_MEMORY = re.compile(r"DefaultCPUAllocator: (can't|not enough memory)|std::bad_alloc|Cannot allocate memory")


@contextmanager
def memory_errors(where: str, *, got: str, fix: str) -> Iterator[None]:
    """Convert out-of-memory exceptions into SD-M601, with what was tried (`got`) and what needs less (`fix`)."""
    try:
        yield
    except (MemoryError, RuntimeError) as failure:
        if ran_out(failure):
            raise out_of_memory(failure, where, got, fix) from failure
        raise


def ran_out(failure: BaseException) -> bool:
    """Return whether an exception means that device or host memory ran out."""
    return isinstance(failure, MemoryError) or (
        type(failure).__name__ == "OutOfMemoryError" or HOST_MEMORY.search(message_of(failure)) is not None
    )


def out_of_memory(failure: BaseException, where: str, got: str, fix: str) -> SdditError:
    """Return the error SD-M601."""
    first = str(failure).partition("\n")[0].partition(". ")[0][:160]
    return error("SD-M601", f"out of memory: {first or 'none is left'}", where=where, got=got, fix=fix)
