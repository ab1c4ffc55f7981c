"""One run on many processes: who does what, and what all of them know. torch's own engine does the work.

A `World` is what the code around it asks, whatever its size: its rows of a batch, means over all ranks, whether anybody
saw a NaN or a signal. Alone it answers at once, with what it was given.

Of several processes each takes its slice of every micro-batch. All draws are keyed by sample, so the slices together are
the batch of one process; a term's value is the mean over the ranks, and its gradient is that mean's.

There are two ways to wait. Collectives, in the steps, end after `timeout` seconds. Where one rank works on its own (it saves,
it draws more images than another), the others wait for as long as it shows signs of life: `from_main` and `from_all`.
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
from sddit.errors import SdditError, error

Json = TypeVar("Json")
BEAT = 1.0  # seconds between signs of life
POLL = 0.02  # seconds between looks at what others said
ASK = 3.0  # seconds that ranks which lost another one give each other to say so


# The world


class World:
    """One process, which has nobody to ask. `stop` notes the signals that ask it to stop."""

    rank = 0
    size = 1

    def __init__(self) -> None:
        self.stop = StopSignals()

    @property
    def main(self) -> bool:
        """Whether this process writes the files and talks to people."""
        return self.rank == 0

    def rows(self, begin: int, count: int) -> slice:
        """This rank's part of the `count` rows from `begin` on, as large as every other's."""
        own = count // self.size
        return slice(begin + self.rank * own, begin + (self.rank + 1) * own)

    def partition(self, count: int) -> slice:
        """This rank's part of any `count` things: in order of rank, of sizes that differ by one at most."""
        return slice(self.rank * count // self.size, (self.rank + 1) * count // self.size)

    def gather(self, x: Tensor) -> Tensor:
        """x [B, ...] of this rank -> [size * B, ...] of all, in order of rank."""
        return x

    def mean(self, x: Tensor) -> Tensor:
        """The mean over all ranks."""
        return x

    def means(self, values: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The means over all ranks of many values, in one message."""
        return values

    def synchronize_status(self, flags: Tensor, noted: list[bool]) -> tuple[Tensor, list[bool]]:
        """Which flags [n] of the device, and which noted on the host, are up on any rank. Signals go with the same message."""
        return flags, noted

    def collect(self, parts: Tensor, count: int) -> Tensor:
        """The shares of `count` things [n, ...] together on the main rank; on the others none."""
        return parts

    def from_main(self, work: Callable[[], Json]) -> Json:
        """What the main rank makes of `work`, a JSON value, on every rank."""
        return work()

    def from_all(self, value: Json) -> list[Json]:
        """What every rank says, JSON values in order of rank."""
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
        self._pulse = threading.Thread(target=self._beat, daemon=True)
        self._pulse.start()

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

    def synchronize_status(self, flags: Tensor, noted: list[bool]) -> tuple[Tensor, list[bool]]:
        heard = [self.stop.heard == request for request in REQUESTS]
        sent = torch.cat([flags, torch.tensor([*heard, *noted], device=flags.device)]).to(torch.uint8)
        dist.all_reduce(sent, dist.ReduceOp.MAX)
        told = [bool(flag) for flag in sent[len(flags) :].tolist()]
        self.stop.agreed = next((request for request, said in zip(REQUESTS, told, strict=False) if said), None)
        return sent[: len(flags)].bool(), told[len(REQUESTS) :]

    def collect(self, parts: Tensor, count: int) -> Tensor:
        self.from_all("drawn")  # some have more to do than others, or are slower
        padded = torch.zeros(-(-count // self.size), *parts.shape[1:], dtype=parts.dtype)
        padded[: len(parts)] = parts.cpu()
        received = [torch.empty_like(padded) for _ in range(self.size)] if self.main else None
        dist.gather(padded, received)
        sizes = [(rank + 1) * count // self.size - rank * count // self.size for rank in range(self.size)]
        return torch.cat([part[:size] for part, size in zip(received or [], sizes, strict=False)] or [padded[:0]])

    def from_main(self, work: Callable[[], Json]) -> Json:
        self._meetings += 1
        key = f"told/{self._meetings}"
        if self.main:
            made = work()
            self.store.set(key, json.dumps(made))
            return made
        self._await(key, 0)
        told: Json = json.loads(self.store.get(key))
        return told

    def from_all(self, value: Json) -> list[Json]:
        self._meetings += 1
        keys = [f"said/{self._meetings}/{rank}" for rank in range(self.size)]
        self.store.set(keys[self.rank], json.dumps(value))
        for rank, key in enumerate(keys):
            self._await(key, rank)
        return [json.loads(self.store.get(key)) for key in keys]

    def _await(self, key: str, rank: int) -> None:
        """Wait for what `rank` is to say, while it lives."""
        last, since = b"", time.monotonic()
        while not self.store.check([key]):
            beat = self.store.get(f"beat/{rank}") if self.store.check([f"beat/{rank}"]) else b""
            if beat != last:
                last, since = beat, time.monotonic()
            if self.store.check([f"failed/{rank}"]):
                raise self.lost([rank], [])
            if time.monotonic() - since > self.timeout:
                raise self.lost([], [rank])
            time.sleep(POLL)

    def _beat(self) -> None:
        """Show signs of life until this rank leaves. Where the store has gone, and with it the launcher, end at once.

        Nobody would hear of this rank any more, and it could save nothing with the others: as if it were killed.
        """
        while not self._left.wait(BEAT):
            try:
                self.store.set(f"beat/{self.rank}", str(time.monotonic()))
            except RuntimeError:
                if not self._left.wait(BEAT):  # not just the end of the run
                    self._end_alone()

    def _end_alone(self) -> None:
        if self.main:
            fault = error(
                "SD-X804",
                "the launcher of this run ended",
                where=f"noticed by rank {self.rank}",
                fix="run the same command again: it continues; SIGKILL often means that memory ran out",
            )
            os.write(2, "\n".join([*fault.problems[0].lines(), ""]).encode())
        else:
            time.sleep(ASK)  # the main rank tells it, and must not take this end for the cause
        os._exit(9)

    def leave(self) -> None:
        """This rank takes part in nothing more. A thread within torch's own code at exit would abort the process."""
        self._left.set()
        self._pulse.join()

    def tell_failure(self) -> None:
        """Let the others know that this rank goes."""
        with suppress(RuntimeError):
            self.store.set(f"failed/{self.rank}", "")

    def without_peer(self, timed_out: bool) -> SdditError:
        """The error of a collective that did not come to its end. Ranks that wait say so: who does not is the cause."""
        others = [rank for rank in range(self.size) if rank != self.rank]
        try:
            self.store.set(f"waits/{self.rank}", "")
            time.sleep(ASK)
            failed = [rank for rank in others if self.store.check([f"failed/{rank}"])]
            silent = [rank for rank in others if rank not in failed and not self.store.check([f"waits/{rank}"])]
        except RuntimeError:  # the store has gone: with the launcher, or its machine
            if self.main:
                self._end_alone()
            failed, silent = others, []
        return self.lost([], silent) if timed_out and silent and not failed else self.lost(failed or silent, [])

    def lost(self, failed: Sequence[int], silent: Sequence[int]) -> SdditError:
        """SD-X801 for ranks that have ended, SD-X802 for ranks that live and do not answer."""
        if silent:
            return error(
                "SD-X802",
                f"{named(silent)} did not answer for {self.timeout:.0f} s",
                where=f"waiting on rank {self.rank}",
                fix="look at that process and its machine; where a step may take that long, raise train.timeout",
            )
        what = f"{named(failed)} ended" if failed else "another process ended"
        return error("SD-X801", what, where=f"noticed by rank {self.rank}", fix="read what that process said last")


def named(ranks: Sequence[int]) -> str:
    """`rank 1`, `ranks 1, 3`."""
    return f"rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))}"


class Gather(torch.autograd.Function):
    """All ranks' rows. What is minimised is the mean over ranks, so a row's gradient is the sum of what all make of it."""

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
    """The mean over ranks, of values and of gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return averaged(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return averaged(gradients[0])


def averaged(x: Tensor) -> Tensor:
    """A new tensor, the mean of x over all ranks."""
    total = x.detach().clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total)
    return total / dist.get_world_size()


def refuse_drift(world: World, tensors: Mapping[str, Tensor]) -> None:
    """SD-X805 where ranks that all hold whole weights do not hold the same ones. Parts are not compared."""
    if world.size == 1 or any(isinstance(tensor, DTensor) for tensor in tensors.values()):
        return
    main, own = world.from_all(digest(tensors))[0], digest(tensors)
    if own != main:
        raise error(
            "SD-X805",
            f"the weights of rank {world.rank} are not those of rank 0",
            where=f"rank {world.rank}",
            got=f"a sum of {own}",
            expect=f"a sum of {main}",
            fix="look at that machine's memory and device; the newest checkpoint is from before",
        )


def digest(tensors: Mapping[str, Tensor]) -> str:
    """A sum of all numbers in float64, in which the last bit of one shows."""
    sums = [tensor.detach().double().sum() for tensor in tensors.values() if tensor.is_floating_point()]
    return float(torch.stack(sums).sum()).hex()
