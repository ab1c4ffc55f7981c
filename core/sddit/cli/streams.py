"""Prepare stdout and stderr: closed ones, ones that cannot encode a path, and a stdout that only JSON may reach."""

from __future__ import annotations

import codecs
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import TextIO

_stdout_of_json: list[TextIO] = []
_stderr: list[int] = []  # a copy of descriptor 2


def open_outputs() -> None:
    """Replace closed outputs by the null device, and let every output take every character.

    The descriptors 0 to 2 are opened too, so that no file of a run gets one of them. An ASCII output gets UTF-8, and
    the bytes of file names as they are, so that a printed path can be copied; other encodings escape the rest.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115 (stays open)
        stream = getattr(sys, name)
        if codecs.lookup(stream.encoding).name == "ascii":
            stream.reconfigure(encoding="utf-8", errors="surrogateescape")
        else:
            stream.reconfigure(errors="backslashreplace")
    _stderr[:] = [os.dup(2)]


def restore_stderr() -> None:
    """Open stderr again if a plugin closed it, so that the error can be printed."""
    with suppress(OSError):  # the copy is closed too
        if _stderr and not is_open(2):
            os.dup2(_stderr[0], 2)
        if getattr(sys.stderr, "closed", True):
            sys.stderr = os.fdopen(os.dup(2), "w", encoding="utf-8", errors="backslashreplace", buffering=1)


def is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


def reserve_stdout() -> None:
    """Let only `print_json` write to stdout. All other output to it, also to descriptor 1, goes to stderr.

    A plugin may print, and so may a library that it uses.
    """
    sys.stdout.flush()
    kept = os.fdopen(os.dup(1), "w", encoding=sys.stdout.encoding, errors=sys.stdout.errors)
    os.dup2(2, 1)
    _stdout_of_json.append(kept)


def release_stdout() -> None:
    """Undo `reserve_stdout`, for processes that this one starts with the same output."""
    while _stdout_of_json:
        sys.stdout.flush()
        kept = _stdout_of_json.pop()
        kept.flush()
        os.dup2(kept.fileno(), 1)
        kept.close()


def json_stream() -> TextIO:
    """Return the stream for JSON: stdout, also where `reserve_stdout` redirected everything else."""
    return _stdout_of_json[-1] if _stdout_of_json else sys.stdout


def flush_outputs() -> None:
    """Flush what is printed. Raises OSError if stdout cannot be written."""
    for stream in {json_stream(), sys.stdout}:
        with suppress(ValueError):  # a plugin closed it
            stream.flush()
