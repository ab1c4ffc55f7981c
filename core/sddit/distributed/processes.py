"""Read rank and world size from torchrun's environment, and record failures per rank. Torch-free.

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
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NoReturn

FAILURES = "SDDIT_FAILURES"  # environment variable: the folder in which the launcher looks for failures
PEER_LOST = ("SD-X801", "SD-X802")  # codes of ranks that only noticed the failure of another rank

BEGAN = time.monotonic()


def world_size() -> int:
    """Return the number of processes of this run."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """Return the rank of this process, from 0."""
    return int(os.environ.get("RANK", "0")) if world_size() > 1 else 0


def local_rank() -> int:
    """Return the rank of this process on its machine, which is also the index of its accelerator."""
    return int(os.environ.get("LOCAL_RANK", "0")) if world_size() > 1 else 0


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
    return rank() > 0 or FAILURES in os.environ


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
