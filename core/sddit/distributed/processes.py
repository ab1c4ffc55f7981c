"""Read and check rank and world size in torchrun's environment, and record failures per rank. Torch-free.

Each rank that fails writes `failure-<rank>.json` into the run folder, for job scripts, since torchrun hides the exit
statuses of its processes. With --nproc the launcher prints the first failure; FAILURES then names a second folder,
since a rank may fail before there is a run folder.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import NoReturn

from sddit.errors import Problem, SdditError

FAILURES = "SDDIT_FAILURES"  # environment variable: the launcher's process id and the folder where it reads failures
PEER_LOST = ("SD-X801", "SD-X802")  # codes of ranks that only noticed the failure of another rank

BEGAN = time.monotonic()

VARIABLES = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
MAX_PORT = 65_535
MAX_PROCESSES = 1_000_000


@dataclass(frozen=True, slots=True)
class Placement:
    """The place of this process in its run."""

    size: int = 1  # processes of the run
    rank: int = 0
    local_rank: int = 0  # among the processes of this machine


def placement() -> Placement:
    """Return the place of this process as the environment states it. Raises SD-X808 if the variables make no sense.

    Only commands that compute with several processes need a correct environment: the others use `world_size` and
    `rank`, which never raise.
    """
    found = _read_environment(tuple(os.environ.get(name) for name in VARIABLES))
    if isinstance(found, Problem):
        raise SdditError(found)
    return found


def world_size() -> int:
    """Return the number of processes of this run; 1 if the environment makes no sense."""
    return _placement_or_alone().size


def rank() -> int:
    """Return the rank of this process, from 0."""
    return _placement_or_alone().rank


def local_rank() -> int:
    """Return the rank of this process on its machine, which is also the index of its accelerator."""
    return _placement_or_alone().local_rank


def _placement_or_alone() -> Placement:
    found = _read_environment(tuple(os.environ.get(name) for name in VARIABLES))
    return Placement() if isinstance(found, Problem) else found


@cache
def _read_environment(texts: tuple[str | None, ...]) -> Placement | Problem:
    """Return the place that the variables `VARIABLES` state, or what is wrong with them."""
    given = {name: text for name, text in zip(VARIABLES, texts, strict=True) if text is not None}
    numbers = {}
    for name, (low, high) in _ranges(given).items():
        if name in given:
            text = given[name]
            if not (text.isascii() and text.isdecimal() and low <= int(text[:12]) <= high):
                return _refused(f"{name} is not a number that torchrun sets", f"{name}={text}", _range(low, high))
            numbers[name] = int(text)
    size = numbers.get("WORLD_SIZE", 1)
    if "WORLD_SIZE" not in given and (extra := [name for name in ("RANK", "LOCAL_RANK") if numbers.get(name)]):
        return _refused(f"{extra[0]} is set without WORLD_SIZE", f"{extra[0]}={given[extra[0]]}", "both or neither")
    if size == 1:
        return Placement()
    if missing := [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if not given.get(name, "").strip()]:
        return _refused(f"{missing[0]} is not set", f"WORLD_SIZE={size}", f"also {', '.join(missing)}")
    return Placement(size, numbers["RANK"], numbers.get("LOCAL_RANK", 0))


def _ranges(given: Mapping[str, str]) -> dict[str, tuple[int, int]]:
    """Return the smallest and the largest value of each variable that is a number: {name: range}."""

    def limit(name: str, otherwise: int) -> int:
        text = given.get(name, "")
        return max(1, int(text)) if text.isascii() and text.isdecimal() and len(text) < 8 else otherwise

    size = limit("WORLD_SIZE", MAX_PROCESSES)
    several = {"MASTER_PORT": (1, MAX_PORT)} if "WORLD_SIZE" in given and size > 1 else {}  # read by several only
    return {
        "WORLD_SIZE": (1, MAX_PROCESSES),
        "LOCAL_WORLD_SIZE": (1, size),
        "RANK": (0, size - 1),
        "LOCAL_RANK": (0, limit("LOCAL_WORLD_SIZE", size) - 1),
    } | several


def _range(low: int, high: int) -> str:
    if high == MAX_PROCESSES - (low == 0):
        return f"a whole number from {low}"
    return f"{low}" if low == high else f"a whole number from {low} to {high}"


def _refused(what: str, got: str, expect: str) -> Problem:
    fix = f"start with torchrun or --nproc, or remove leftover variables: unset {' '.join(VARIABLES)}"
    return Problem("SD-X808", what, "the environment of torchrun", got[:200], expect, fix)


def exit_process(status: int) -> NoReturn:
    """Exit with a status. All results must be on disk.

    One of several processes skips the interpreter's shutdown: a thread of torch that needs the interpreter during
    shutdown would abort the process, which would count as a failed rank.
    """
    if world_size() == 1:
        sys.exit(status)
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(status)


def is_reported_elsewhere() -> bool:
    """Return whether the main rank or the launcher prints the messages of this process before the run."""
    return launcher_folder() is not None or (rank() > 0 and has_launcher())


def has_launcher() -> bool:
    """Return whether torchrun or --nproc started this process, rather than a shell with leftover variables."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def launcher_folder() -> Path | None:
    """Return the folder where our launcher reads failures; None if it is not the parent of this process."""
    pid, _, folder = os.environ.get(FAILURES, "").partition(":")
    return Path(folder) if folder and pid == str(os.getppid()) else None


@dataclass(frozen=True, slots=True)
class Failure:
    """The failure of one rank."""

    rank: int
    code: str  # error code; empty for a bug
    exit: int
    step: int  # optimizer steps taken
    seconds: float  # since the process started
    lines: tuple[str, ...]  # of the message

    @property
    def message(self) -> tuple[str, ...]:
        """The lines of the message, with rank and step."""
        return *self.lines, f"  {'rank:':<8}{self.rank}, after step {self.step}"


def write_failure(failure: Failure, folders: Iterable[Path]) -> None:
    """Write `failure-<rank>.json` into each folder. Storage errors are ignored: the message itself matters more."""
    for folder in folders:
        with contextlib.suppress(OSError):
            staged = folder / f".tmp-failure-{failure.rank}"
            staged.write_text(json.dumps(asdict(failure), indent=1) + "\n", encoding="utf-8")
            staged.replace(folder / f"failure-{failure.rank}.json")


def read_failures(folder: Path) -> list[Failure]:
    """Read the failures in a folder: causes before their consequences, then by step and rank.

    Clocks of machines are not compared.
    """
    found = []
    for path in folder.glob("failure-*.json"):
        with contextlib.suppress(OSError, ValueError, TypeError):  # removed, or not written by sddit
            record = json.loads(path.read_text(encoding="utf-8"))
            found.append(Failure(**record | {"lines": tuple(record["lines"])}))
    return sorted(found, key=lambda failure: (failure.code in PEER_LOST, failure.step, failure.rank))


def remove_failures(folder: Path) -> None:
    """Remove the failures of an earlier start."""
    for path in folder.glob("failure-*.json"):
        path.unlink(missing_ok=True)
