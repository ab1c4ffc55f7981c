"""Start the ranks of `--nproc N` on this machine with torch's elastic launcher, and print one message if they fail."""

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

from sddit.cli.output import print_error
from sddit.distributed.processes import FAILURES, Failure, read_failures
from sddit.errors import error

STOPPED = {128 + number for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
SHUTDOWN_SECONDS = "600"  # for a step and a save after a signal; torch kills after 30 by default


def launch(arguments: Sequence[str], count: int) -> int:
    """Run `sddit-run ARGUMENTS` as `count` processes, print the cause of a failure, and return the exit status.

    Raises SD-X807 if the system does not let the launcher start them.
    """
    with launcher_errors(count), TemporaryDirectory(prefix="sddit-") as folder, launcher_settings(count, folder):
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
        recorded = read_failures(Path(folder))
        failure = root_failure(recorded, ended) if recorded or (ended and not status) else None
    if failure is None:
        return status
    print_error(failure.message)
    return failure.exit


def root_failure(recorded: Sequence[Failure], ended: Mapping[int, int]) -> Failure:
    """Return the failure that caused the others: a recorded one, else that of a rank that ended without a message."""
    cause = next(iter(recorded), None)
    if cause is not None and cause.code not in ("SD-X801", ""):
        return cause
    reported = {failure.rank for failure in recorded}
    silent = {rank: status for rank, status in ended.items() if rank not in reported and status not in STOPPED}
    if not silent and cause is not None:
        return cause
    rank, status = next(iter((silent or ended).items()))
    step = max((failure.step for failure in recorded), default=0)
    how = f"was killed by {signal.Signals(-status).name}" if status < 0 else f"exited with status {status}"
    problem = error(
        "SD-X801",
        f"rank {rank} {how}",
        where=f"after step {step}",
        fix="rerun the same command to resume; SIGKILL often means that the machine ran out of memory",
    ).problems[0]
    return Failure(rank, problem.code, 9, step, 0.0, tuple(problem.lines()))


@contextmanager
def launcher_errors(count: int) -> Iterator[None]:
    """Convert errors of torch's launcher, such as no free port or open file, to SD-X807."""
    try:
        yield
    except (OSError, RuntimeError, RendezvousError) as fault:
        raise error(
            "SD-X807",
            f"{count} processes could not be started",
            where="--nproc",
            got=f"{type(fault).__name__}: {fault}".splitlines()[0],
            fix="check the limits of open files and processes (ulimit -n, ulimit -u) and the temporary folder (TMPDIR)",
        ) from fault


@contextmanager
def launcher_settings(count: int, folder: str) -> Iterator[None]:
    """Set the environment of the ranks: where to record failures, and CPU threads that share the cores.

    The log of torch's launcher is disabled: we print the failure ourselves.
    """
    environment, disabled_level = dict(os.environ), logging.root.manager.disable
    os.environ[FAILURES] = f"{os.getpid()}:{folder}"
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // count)))
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", SHUTDOWN_SECONDS)
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # a lost peer is reported once, by us
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(disabled_level)
        os.environ.clear()
        os.environ.update(environment)
