"""Divide work among the processes of a run, and exchange results between them.

Each process takes its slice of every micro-batch. All draws are keyed by sample, so the slices together equal the batch
of one process. A loss is the mean over the ranks, and so is its gradient.

There are two ways to wait. Collectives, used within steps, time out after `timeout` seconds. Where one rank works alone
(it saves, or samples more images than another), the others wait in `from_main` or `from_all` as long as its heartbeat
continues.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.tensor import DTensor

from sddit.distributed.signals import REQUESTS, StopSignals
from sddit.errors import Problem, SdditError, error

Json = TypeVar("Json")
BEAT = 1.0  # seconds between heartbeats
POLL = 0.02  # seconds between reads of the store
ASK = 3.0  # seconds in which ranks that lost a peer report it to each other


class World:
    """A run of one process. `stop` records the signals that request a stop.

    `DistributedWorld` has the same interface, so that callers need not distinguish them.
    """

    rank = 0
    size = 1

    def __init__(self) -> None:
        self.stop = StopSignals()

    @property
    def main(self) -> bool:
        """Return whether this process writes files and prints messages."""
        return self.rank == 0

    def rows(self, begin: int, count: int) -> slice:
        """Return this rank's rows of the `count` rows from `begin` on. All ranks get equally many."""
        own = count // self.size
        return slice(begin + self.rank * own, begin + (self.rank + 1) * own)

    def partition(self, count: int) -> slice:
        """Return this rank's slice of `count` items: in order of rank, with sizes that differ by at most one."""
        return slice(self.rank * count // self.size, (self.rank + 1) * count // self.size)

    def gather(self, x: Tensor) -> Tensor:
        """Concatenate x [B, ...] of all ranks to [size * B, ...], in order of rank."""
        return x

    def mean(self, x: Tensor) -> Tensor:
        """Return the mean over all ranks."""
        return x

    def means(self, values: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Return the means over all ranks of several values, with one collective."""
        return values

    def synchronize_status(self, flags: Tensor, host_flags: list[bool]) -> tuple[Tensor, list[bool]]:
        """Combine flags [n] on the device and flags on the host over all ranks, by logical or.

        The same collective exchanges the signals that ranks received, which sets `stop.agreed`.
        """
        return flags, host_flags

    def collect(self, parts: Tensor, count: int) -> Tensor:
        """Concatenate the `partition` slices [n, ...] of `count` items on the main rank; the others return none."""
        return parts

    def from_main(self, work: Callable[[], Json]) -> Json:
        """Run `work` on the main rank and return its result, a JSON value, on every rank."""
        return work()

    def from_all(self, value: Json) -> list[Json]:
        """Return the JSON values of all ranks, in order of rank."""
        return [value]


class DistributedWorld(World):
    """One of several processes."""

    def __init__(self, store: Store, device: torch.device, timeout: float) -> None:
        self.stop = StopSignals(alone=False)
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self.device, self.timeout = device, timeout
        self.store = PrefixStore("sddit", store)
        self._meetings = 0
        self._left = threading.Event()
        self._heartbeat = threading.Thread(target=self._beat, daemon=True)
        self._heartbeat.start()

    def gather(self, x: Tensor) -> Tensor:
        gathered: Tensor = Gather.apply(x)  # type: ignore[no-untyped-call]
        return gathered

    def mean(self, x: Tensor) -> Tensor:
        mean: Tensor = Mean.apply(x)  # type: ignore[no-untyped-call]
        return mean

    def means(self, values: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        if not values:
            return values
        sent = torch.cat([value.detach().to(self.device, torch.float64).flatten() for value in values.values()])
        parts = torch.split(self.mean(sent), [value.numel() for value in values.values()])
        return {name: part.view(value.shape) for (name, value), part in zip(values.items(), parts, strict=True)}

    def synchronize_status(self, flags: Tensor, host_flags: list[bool]) -> tuple[Tensor, list[bool]]:
        received = [self.stop.received == request for request in REQUESTS]
        sent = torch.cat([flags, torch.tensor([*received, *host_flags], device=flags.device)]).to(torch.uint8)
        dist.all_reduce(sent, dist.ReduceOp.MAX)
        on_host = [bool(flag) for flag in sent[len(flags) :].tolist()]
        self.stop.agreed = next((request for request, flag in zip(REQUESTS, on_host, strict=False) if flag), None)
        return sent[: len(flags)].bool(), on_host[len(REQUESTS) :]

    def collect(self, parts: Tensor, count: int) -> Tensor:
        self.from_all("sampled")  # ranks may have different amounts of work
        padded = torch.zeros(-(-count // self.size), *parts.shape[1:], dtype=parts.dtype)
        padded[: len(parts)] = parts.cpu()
        received = [torch.empty_like(padded) for _ in range(self.size)] if self.main else None
        dist.gather(padded, received)
        sizes = [(rank + 1) * count // self.size - rank * count // self.size for rank in range(self.size)]
        return torch.cat([part[:size] for part, size in zip(received or [], sizes, strict=False)] or [padded[:0]])

    def from_main(self, work: Callable[[], Json]) -> Json:
        self._meetings += 1
        key = f"main/{self._meetings}"
        if self.main:
            result = work()
            self.store.set(key, json.dumps(result))
            return result
        self._await(key, 0)
        received: Json = json.loads(self.store.get(key))
        return received

    def from_all(self, value: Json) -> list[Json]:
        self._meetings += 1
        keys = [f"all/{self._meetings}/{rank}" for rank in range(self.size)]
        self.store.set(keys[self.rank], json.dumps(value))
        for rank, key in enumerate(keys):
            self._await(key, rank)
        return [json.loads(self.store.get(key)) for key in keys]

    def _await(self, key: str, rank: int) -> None:
        """Wait until `rank` has set `key`, as long as its heartbeat continues."""
        last, since = b"", time.monotonic()
        while not self.store.check([key]):
            beat = self.store.get(f"beat/{rank}") if self.store.check([f"beat/{rank}"]) else b""
            if beat != last:
                last, since = beat, time.monotonic()
            if self.store.check([f"failed/{rank}"]):
                raise self._lost_error([rank], alive=False)
            if time.monotonic() - since > self.timeout:
                raise self._lost_error([rank], alive=True)
            time.sleep(POLL)

    def _beat(self) -> None:
        """Send heartbeats until this rank leaves. If the store is gone, and with it the launcher, end at once.

        Without the store, this rank can neither report anything nor save together with the others.
        """
        while not self._left.wait(BEAT):
            try:
                self.store.set(f"beat/{self.rank}", str(time.monotonic()))
            except RuntimeError:
                if not self._left.wait(BEAT):  # not the end of the run
                    self._end_alone()

    def _end_alone(self) -> None:
        if self.main:
            fix = "rerun the same command to resume; SIGKILL often means that memory ran out"
            problem = Problem("SD-X804", "the launcher of this run ended", f"noticed by rank {self.rank}", fix=fix)
            os.write(2, "\n".join([*problem.lines(), ""]).encode())
        else:
            time.sleep(ASK)  # the main rank reports first, and must not take this exit for the cause
        os._exit(9)

    def leave(self) -> None:
        """Stop the heartbeat thread. A thread inside torch at exit would abort the process."""
        self._left.set()
        self._heartbeat.join()

    def announce_failure(self) -> None:
        """Notify the other ranks that this rank failed."""
        with suppress(RuntimeError):
            self.store.set(f"failed/{self.rank}", "")

    def peer_lost_error(self, timed_out: bool) -> SdditError:
        """Return the error for an interrupted collective. Ranks that wait report so; one that does not is the cause."""
        others = [rank for rank in range(self.size) if rank != self.rank]
        try:
            self.store.set(f"waits/{self.rank}", "")
            time.sleep(ASK)
            failed = [rank for rank in others if self.store.check([f"failed/{rank}"])]
            silent = [rank for rank in others if rank not in failed and not self.store.check([f"waits/{rank}"])]
        except RuntimeError:  # the store is gone, and with it the launcher or its machine
            if self.main:
                self._end_alone()
            failed, silent = others, []
        return self._lost_error(failed or silent, alive=timed_out and not failed and bool(silent))

    def _lost_error(self, ranks: Sequence[int], *, alive: bool) -> SdditError:
        """Return SD-X801 for ranks that ended, or SD-X802 for ranks that are alive but do not answer."""
        who = f"rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))}" if ranks else "another process"
        if alive:
            what = f"{who} did not answer for {self.timeout:.0f} s"
            fix = "check that process and its machine; if a step may take that long, raise train.timeout"
            return error("SD-X802", what, where=f"waiting on rank {self.rank}", fix=fix)
        fix = "read the last messages of that process"
        return error("SD-X801", f"{who} ended", where=f"noticed by rank {self.rank}", fix=fix)


class Gather(torch.autograd.Function):
    """Gather the rows of all ranks. The gradient of a row is the sum of the gradients of all ranks for it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.rows = len(x)
        parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, x.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        gradient = gradients[0].contiguous()
        dist.all_reduce(gradient)
        return gradient.narrow(0, dist.get_rank() * ctx.rows, ctx.rows)


class Mean(torch.autograd.Function):
    """Average values over ranks, and their gradients too."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return mean_over_ranks(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return mean_over_ranks(gradients[0])


def mean_over_ranks(x: Tensor) -> Tensor:
    """Return the mean of x over all ranks, as a new tensor."""
    total = x.detach().clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total)
    return total / dist.get_world_size()


def refuse_drift(world: World, tensors: Mapping[str, Tensor]) -> None:
    """Raise SD-X805 if ranks hold different weights. Sharded weights are not compared."""
    if world.size == 1 or any(isinstance(tensor, DTensor) for tensor in tensors.values()):
        return
    own = checksum(tensors)
    if own != (main := world.from_all(own)[0]):
        raise error(
            "SD-X805",
            f"the weights of rank {world.rank} differ from those of rank 0",
            where=f"rank {world.rank}",
            got=f"checksum {own}",
            expect=f"checksum {main}",
            fix="check that machine's memory and device; the newest checkpoint was saved before",
        )


def checksum(tensors: Mapping[str, Tensor]) -> str:
    """Return the sum of all values in float64, in hexadecimal. Almost any changed bit changes it."""
    sums = [tensor.detach().double().sum() for tensor in tensors.values() if tensor.is_floating_point()]
    return float(torch.stack(sums).sum()).hex()
