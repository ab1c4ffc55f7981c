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
import re
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from datetime import timedelta
from typing import Any, Literal, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.rendezvous import rendezvous
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from sddit import processes
from sddit.errors import SdditError, error
from sddit.training.signals import REQUESTS, StopSignals, ignore_signals

Json = TypeVar("Json")

JOIN = 30.0  # seconds to find the other processes
BEAT = 1.0  # seconds between signs of life
POLL = 0.02  # seconds between looks at what others said
ASK = 3.0  # seconds that ranks which lost another one give each other to say so

LOST = re.compile(r"\bgloo\b|\bnccl\b|connection (closed|reset|refused)|broken pipe", re.IGNORECASE)
"""What gloo says when a collective lost a peer, in a plain RuntimeError."""


# --------------------------------------------------------------------------------------------------------------------
# The world
# --------------------------------------------------------------------------------------------------------------------


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

    def share(self, count: int) -> slice:
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

    def any(self, flags: Tensor, noted: list[bool]) -> tuple[Tensor, list[bool]]:
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


class Processes(World):
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

    def any(self, flags: Tensor, noted: list[bool]) -> tuple[Tensor, list[bool]]:
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


# --------------------------------------------------------------------------------------------------------------------
# Joining and leaving
# --------------------------------------------------------------------------------------------------------------------


@contextmanager
def joined(device: torch.device, timeout: float) -> Iterator[World]:
    """The world that this process was started in. Raises SD-X806 if the others are not found.

    A collective that fails because another rank ended or hangs becomes SD-X801 or SD-X802.
    """
    if processes.count() == 1:
        yield World()
        return
    world = Processes(connected(device, timeout), device, timeout)
    try:
        yield world
    except Exception as fault:
        ignore_signals()  # the launcher sends them as soon as one rank has failed
        if lost_peer(fault):
            raise world.without_peer("timed out" in str(fault).lower()) from fault
        world.tell_failure()
        raise
    else:
        dist.destroy_process_group()
    finally:
        world.leave()


def lost_peer(fault: Exception) -> bool:
    """Whether a collective or the store failed for want of another process, rather than by a fault of this one."""
    named = isinstance(fault, dist.DistNetworkError | dist.DistStoreError | dist.DistBackendError)
    return named or (isinstance(fault, RuntimeError) and bool(LOST.search(str(fault))))


def connected(device: torch.device, timeout: float) -> Store:
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
            expect=f"{processes.count()} processes started by torchrun or --nproc",
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


# --------------------------------------------------------------------------------------------------------------------
# The module that is trained
# --------------------------------------------------------------------------------------------------------------------


def parallel(student: nn.Module, copies: Sequence[nn.Module], world: World, kind: Literal["ddp", "fsdp"]) -> nn.Module:
    """What is called in place of the student: itself, or what averages its gradients over the ranks.

    With fsdp each rank keeps a part of every weight, of the student's and alike of its `copies`, the teacher and averages.
    """
    if world.size == 1:
        return student
    if kind == "fsdp":
        shard(student)
        for copy in copies:
            shard(copy, reshard_after_forward=True)  # no backward pass comes to do it
        return student
    with warnings.catch_warnings():  # newer versions of torch rename the argument, and warn of the name that all know
        warnings.simplefilter("ignore", FutureWarning)
        # Buffers change in `after_step`, alike on all ranks.
        return DistributedDataParallel(student, broadcast_buffers=False)


def shard(module: nn.Module, *, reshard_after_forward: bool | None = None) -> None:
    """Split the weights over the ranks: gathered block by block where there are blocks, the rest at once."""
    mesh = init_device_mesh(next(module.parameters()).device.type, (dist.get_world_size(),))
    for part in module.modules():
        for block in getattr(part, "blocks", ()):
            fully_shard(block, mesh=mesh)
    fully_shard(module, mesh=mesh, reshard_after_forward=reshard_after_forward)


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor of which this rank may hold a part. Every rank has to ask."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def part_like(own: Tensor, tensor: Tensor) -> Tensor:
    """This rank's part of a whole tensor, as it holds a part of its `own` one."""
    if not isinstance(own, DTensor) or own.shape != tensor.shape:
        return tensor
    return distribute_tensor(tensor.to(own.device), own.device_mesh, own.placements, src_data_rank=None)


def parts_like(own: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same by name; a name that is not its own stays as it is, to be refused where it is loaded."""
    return {name: part_like(own[name], tensor) if name in own else tensor for name, tensor in tensors.items()}


def accumulating(root: nn.Module, *, last: bool) -> AbstractContextManager[None]:
    """Around a forward and backward pass: gradients of all but the last micro-batch stay on this rank."""
    if isinstance(root, FSDPModule):
        root.set_requires_gradient_sync(last)
    if isinstance(root, DistributedDataParallel) and not last:
        held: AbstractContextManager[None] = root.no_sync()
        return held
    return nullcontext()


def reaching_all(root: nn.Module, loss: Tensor) -> tuple[Tensor, list[bool]]:
    """`loss` with a gradient of 0 for every parameter that it does not reach, since DDP waits for each.

    Also, for each parameter, whether this batch had a gradient for it. Without DDP nothing waits and nothing is noted.
    """
    if not isinstance(root, DistributedDataParallel):
        return loss, []
    parameters = [parameter for parameter in root.parameters() if parameter.requires_grad]
    found = reached(loss)
    missing = [parameter for parameter in parameters if parameter not in found]
    zero = torch.stack([parameter.sum() for parameter in missing]).sum() * 0.0 if missing else 0.0
    return loss + zero, [parameter in found or parameter.grad is not None for parameter in parameters]


def reached(loss: Tensor) -> set[Tensor]:
    """The parameters that a backward pass from `loss` comes to."""
    found: set[Tensor] = set()
    seen: set[Any] = set()
    waiting = [loss.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found.add(node.variable)
        waiting += [following for following, _ in node.next_functions]
    return found
