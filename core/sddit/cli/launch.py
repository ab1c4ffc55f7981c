"""`--nproc N`: one process for each rank on this machine, by torch's elastic launcher, and one message if they fail."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from uuid import uuid4

from torch.distributed.elastic.multiprocessing.api import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.elastic.rendezvous.api import RendezvousError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from sddit.cli.common import error_console
from sddit.distributed.processes import FAILURES, Failure, failures_in
from sddit.errors import error

STOPPED = {128 + number for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
PATIENCE = "600"  # seconds for a step and a save after a signal; torch kills after 30 unless told otherwise


def launch(arguments: Sequence[str], count: int) -> int:
    """Run `sddit-run ARGUMENTS` as `count` processes. Returns the exit status of the run; prints why it failed.

    Raises SD-X807 where the system does not let the launcher start them.
    """
    with starting(count), TemporaryDirectory(prefix="sddit-") as folder, environment(count, folder), silence():
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=count,
            run_id=uuid4().hex,
            rdzv_backend="c10d",
            rdzv_endpoint="127.0.0.1:0",
            local_addr="127.0.0.1",
            max_restarts=0,
            signals_to_handle="SIGTERM,SIGINT,SIGHUP,SIGUSR1",
            logs_specs=DefaultLogsSpecs(log_dir=folder),
        )
        ended: Mapping[int, int] = {}
        status = 0
        try:
            elastic_launch(config, sys.executable)("-m", "sddit", *arguments)
        except ChildFailedError as failed:
            ended = {rank: failure.exitcode for rank, failure in failed.failures.items()}
            if set(ended.values()) <= STOPPED:
                status = next(iter(ended.values()))
        except SignalException as stopped:
            status = 128 + (signal.SIGTERM if stopped.sigval == signal.SIGHUP else stopped.sigval)
        noted = failures_in(Path(folder))
        failure = first(noted, ended) if noted or (ended and not status) else None
    return told(failure) if failure else status


def first(noted: Sequence[Failure], ended: Mapping[int, int]) -> Failure:
    """The failure that made the others: of a rank that said why, else of one that ended without a word."""
    cause = next(iter(noted), None)
    if cause is not None and cause.code not in ("SD-X801", ""):
        return cause
    spoke = {failure.rank for failure in noted}
    silent = {rank: status for rank, status in ended.items() if rank not in spoke and status not in STOPPED}
    if not silent and cause is not None:
        return cause
    rank, status = next(iter((silent or ended).items()))
    step = max((failure.step for failure in noted), default=0)
    how = f"was ended by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
    problem = error(
        "SD-X801",
        f"rank {rank} {how}",
        where=f"after step {step}",
        fix="run the same command again: it continues; SIGKILL often means that memory ran out",
    ).problems[0]
    return Failure(rank, problem.code, 9, step, 0.0, tuple(problem.lines()))


def told(failure: Failure) -> int:
    """Print a failure; its exit status."""
    head, *body = failure.said
    out = error_console()
    out.print(head, style="bold red", soft_wrap=True)
    for line in body:
        out.print(line, soft_wrap=True)
    return failure.exit


@contextmanager
def starting(count: int) -> Iterator[None]:
    """Around torch's launcher: what the system refuses to it, such as a port, an open file or a temporary folder."""
    try:
        yield
    except (OSError, RuntimeError, RendezvousError) as fault:
        raise error(
            "SD-X807",
            f"{count} processes could not be started",
            where="--nproc",
            got=f"{type(fault).__name__}: {fault}".splitlines()[0],
            fix="look at the limits of open files and processes (ulimit -n, ulimit -u) and at the temporary folder (TMPDIR)",
        ) from fault


@contextmanager
def environment(count: int, folder: str) -> Iterator[None]:
    """What the ranks find in their environment: where to note failures, and threads that share the cores."""
    before = dict(os.environ)
    os.environ[FAILURES] = folder
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // count)))
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", PATIENCE)
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # a peer that went is told once, by us
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextmanager
def silence() -> Iterator[None]:
    """No log of torch's launcher: what went wrong is told in our own form."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)
