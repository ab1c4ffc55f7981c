"""Join the processes of a run, and notice when one is lost."""

from __future__ import annotations

import re
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

JOIN = 30.0  # seconds to find the other processes

LOST = re.compile(r"\bgloo\b|\bnccl\b|connection (closed|reset|refused)|broken pipe", re.IGNORECASE)
"""What gloo says when a collective lost a peer, in a plain RuntimeError."""


# Joining and leaving


@contextmanager
def join_processes(device: torch.device, timeout: float) -> Iterator[World]:
    """The world that this process was started in. Raises SD-X806 if the others are not found.

    A collective that fails because another rank ended or hangs becomes SD-X801 or SD-X802.
    """
    if processes.world_size() == 1:
        yield World()
        return
    world = DistributedWorld(connect(device, timeout), device, timeout)
    try:
        yield world
    except Exception as fault:
        ignore_signals()  # the launcher sends them as soon as one rank has failed
        if is_peer_failure(fault):
            raise world.without_peer("timed out" in str(fault).lower()) from fault
        world.tell_failure()
        raise
    else:
        dist.destroy_process_group()
    finally:
        world.leave()


def is_peer_failure(fault: Exception) -> bool:
    """Whether a collective or the store failed for want of another process, rather than by a fault of this one."""
    named = isinstance(fault, dist.DistNetworkError | dist.DistStoreError | dist.DistBackendError)
    return named or (isinstance(fault, RuntimeError) and bool(LOST.search(str(fault))))


def connect(device: torch.device, timeout: float) -> Store:
    """Find the other processes by what torchrun says in the environment, and form their group."""
    backend = "gloo" if device.type == "cpu" else "cpu:gloo,cuda:nccl"
    try:
        store: Store
        store, rank, size = next(rendezvous("env://", timeout=timedelta(seconds=JOIN)))
        store.set_timeout(timedelta(seconds=JOIN))
        store.set(f"here/{rank}", "")  # the group itself waits for `timeout` only, which is meant for a step
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
            where="the environment of torchrun",
            got=str(fault).splitlines()[0],
            expect=f"{processes.world_size()} processes started by torchrun or --nproc",
            fix="check --nnodes, the rendezvous address and port, and that all machines were started",
        ) from fault
    return store


def refuse_differences(world: World, facts: Mapping[str, Any]) -> None:
    """SD-X803 on a rank whose facts are not those of the main rank: they would not make one run."""
    main, own = world.from_all(dict(facts))[0], dict(facts)
    for what, value in main.items():
        if own[what] != value:
            raise error(
                "SD-X803",
                f"rank {world.rank} has other {what} than rank 0",
                where=f"rank {world.rank}",
                got=str(own[what]),
                expect=str(value),
            )
