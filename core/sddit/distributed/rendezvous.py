"""Connect the processes of a run, and detect when one is lost."""

from __future__ import annotations

import os
import re
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import Store
from torch.distributed.rendezvous import rendezvous

from sddit.distributed import processes
from sddit.distributed.signals import ignore_signals
from sddit.distributed.world import DistributedWorld, World
from sddit.errors import error

JOIN = 30.0  # seconds to wait for the other processes
POLL = 0.2  # seconds between attempts to connect

# Messages of the plain RuntimeError that a collective raises when it loses a peer.
LOST = re.compile(r"\bgloo\b|\bnccl\b|connection (closed|reset|refused)|broken pipe", re.IGNORECASE)


@contextmanager
def join_processes(device: torch.device, timeout: float) -> Iterator[World]:
    """Join the other processes of a run and yield their `World`. Raises SD-X806 if they do not connect.

    Raises SD-X801 or SD-X802 when a collective fails because another rank ended or hangs.
    """
    if processes.placement().size == 1:
        yield World()
        return
    world = DistributedWorld(connect(device, timeout), device, timeout)
    try:
        yield world
    except Exception as fault:
        ignore_signals()  # the launcher sends signals as soon as one rank has failed
        if is_peer_failure(fault):
            raise world.peer_lost_error("timed out" in str(fault).lower()) from fault
        world.announce_failure()
        raise
    else:
        dist.destroy_process_group()
    finally:
        world.leave()


def is_peer_failure(fault: Exception) -> bool:
    """Return whether a collective or the store failed because another process is missing."""
    named = isinstance(fault, dist.DistNetworkError | dist.DistStoreError | dist.DistBackendError)
    return named or (isinstance(fault, RuntimeError) and bool(LOST.search(str(fault))))


def connect(device: torch.device, timeout: float) -> Store:
    """Connect to the other processes by torchrun's environment, and form the process group."""
    where = f"MASTER_ADDR={os.environ['MASTER_ADDR']} MASTER_PORT={os.environ['MASTER_PORT']}"
    fix = (
        "check --nnodes, the rendezvous address and port, and that all machines were started; for one process, "
        f"unset {' '.join(processes.VARIABLES)}"
    )
    refuse_unreachable(where, fix)
    backend = "gloo" if device.type == "cpu" else "cpu:gloo,cuda:nccl"
    try:
        store: Store
        store, rank, size = next(rendezvous("env://", timeout=timedelta(seconds=JOIN)))
        store.set_timeout(timedelta(seconds=JOIN))
        store.set(f"here/{rank}", "")  # `timeout` of the group is meant for steps
        store.wait([f"here/{other}" for other in range(size)])
        dist.init_process_group(
            backend,
            store=store,
            rank=rank,
            world_size=size,
            timeout=timedelta(seconds=timeout),
            device_id=device if device.type == "cuda" else None,
        )
    except (RuntimeError, ValueError) as fault:
        raise error(
            "SD-X806",
            "the processes of this run did not find each other",
            where=where,
            got=str(fault).splitlines()[0],
            expect=f"{processes.world_size()} processes started by torchrun or --nproc",
            fix=fix,
        ) from fault
    return store


def refuse_unreachable(where: str, fix: str) -> None:
    """Raise SD-X806 if the meeting point has no address, or, for ranks other than 0, if nothing listens there.

    torch's own message is a C++ stack, a minute later.
    """
    deadline = time.monotonic() + JOIN
    address = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    while True:
        try:
            socket.getaddrinfo(*address)
            if processes.rank() > 0:
                socket.create_connection(address, timeout=max(1.0, deadline - time.monotonic())).close()
            return
        except (OSError, UnicodeError) as fault:
            unknown = isinstance(fault, UnicodeError | socket.gaierror)
            named = not unknown or getattr(fault, "errno", 0) == socket.EAI_AGAIN
            if named and time.monotonic() < deadline:
                time.sleep(POLL)
                continue
            what = "the processes of this run did not find each other"
            expect = "rank 0 listens at this address" if named else "a host name or an address"
            raise error("SD-X806", what, where=where, got=str(fault), expect=expect, fix=fix) from None


def refuse_differences(world: World, facts: Mapping[str, Any]) -> None:
    """Raise SD-X803 on a rank whose facts differ from those of the main rank."""
    rank = f"rank {world.rank}"
    for what, value in world.from_all(dict(facts))[0].items():
        if (own := facts[what]) != value:
            raise error("SD-X803", f"{rank} and rank 0 differ in {what}", where=rank, got=str(own), expect=str(value))
