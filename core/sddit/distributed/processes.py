"""Which of several processes this one is, as torchrun says by its environment, and what a failed one leaves. No torch.

Each rank that fails writes `failure-<rank>.json` into the run folder, {code, exit, step, seconds, ...}: torchrun hides the
exit statuses of its processes, so a job script decides by these files. With --nproc the launcher does, and prints the one
that came first; FAILURES then names a folder of its own, since a rank may fail before there is a run folder.
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
PEER_LOST = ("SD-X801", "SD-X802")  # codes of ranks that only noticed the failure of another

BEGAN = time.monotonic()


def world_size() -> int:
    """How many processes make this run."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """The number of this process among them, from 0."""
    return int(os.environ.get("RANK", "0")) if world_size() > 1 else 0


def local_rank() -> int:
    """Its number among those of this machine, which is that of its accelerator."""
    return int(os.environ.get("LOCAL_RANK", "0")) if world_size() > 1 else 0


def exit_process(status: int) -> NoReturn:
    """End this process with an exit status. All that matters is on the disk by then.

    One of several ends without the interpreter's own end: torch's threads may still hold tensors, and a thread that wants
    the interpreter while it shuts down aborts the process, which would count as a failed rank.
    """
    if world_size() == 1:
        sys.exit(status)
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(status)


def is_reported_elsewhere() -> bool:
    """Whether another process says what this one would say before it begins: the main rank, or the launcher of all."""
    return rank() > 0 or FAILURES in os.environ


@dataclass(frozen=True, slots=True)
class Failure:
    """How one rank ended."""

    rank: int
    code: str  # of the message; empty: a bug
    exit: int
    step: int  # optimizer steps it had taken
    seconds: float  # since it was started
    lines: tuple[str, ...]  # the message

    @property
    def order(self) -> tuple[bool, int, int]:
        """Causes come before what they caused, then steps, then ranks: the clocks of machines are not compared."""
        return self.code in PEER_LOST, self.step, self.rank

    @property
    def said(self) -> tuple[str, ...]:
        """The message, with the rank it came from."""
        return *self.lines, f"  {'rank:':<8}{self.rank}, after step {self.step}"


def write_failure(failure: Failure, folders: Iterable[Path]) -> None:
    """Leave `failure-<rank>.json` where others look for it. Storage that refuses is let be: the message says more."""
    for folder in folders:
        with contextlib.suppress(OSError):
            staged = folder / f".tmp-failure-{failure.rank}"
            staged.write_text(json.dumps(asdict(failure), indent=1) + "\n", encoding="utf-8")
            staged.replace(folder / f"failure-{failure.rank}.json")


def read_failures(folder: Path) -> list[Failure]:
    """The failures that were noted there, the first one first."""
    found = []
    for path in folder.glob("failure-*.json"):
        with contextlib.suppress(OSError, ValueError, TypeError):  # gone, or not ours
            noted = json.loads(path.read_text(encoding="utf-8"))
            found.append(Failure(**noted | {"lines": tuple(noted["lines"])}))
    return sorted(found, key=lambda failure: failure.order)


def remove_failures(folder: Path) -> None:
    """Remove what an earlier sitting left."""
    for path in folder.glob("failure-*.json"):
        path.unlink(missing_ok=True)
