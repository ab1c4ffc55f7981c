"""Compare a loss on one process with itself on two that each hold half of the samples, simulated by threads."""

from __future__ import annotations

import copy
import dataclasses
import threading
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from sddit.interfaces import LossParams
from sddit.training.findings import Findings
from sddit.training.loss_checks import LOOSE, TOLERANCE, Scene, gradients_of, is_near

T = TypeVar("T")

RANKS = 2
WAIT = 60.0  # seconds for the other rank
FINISHED = object()
UNEQUAL = "ctx.gather and ctx.mean are not called equally often on all processes"


class Exchange:
    """Exchange tensors between the threads of the ranks; their graph stays whole."""

    def __init__(self) -> None:
        self.barrier = threading.Barrier(RANKS, timeout=WAIT)
        self.slots: list[Any] = [None] * RANKS

    def all_values(self, rank: int, value: Any) -> list[Any]:
        """Return the values of all ranks."""
        self.slots[rank] = value
        self.barrier.wait()
        found = list(self.slots)
        self.barrier.wait()
        if len({entry is FINISHED for entry in found}) > 1:
            raise RuntimeError(UNEQUAL)
        return found

    def gather(self, rank: int, x: Tensor) -> Tensor:
        return torch.cat(self.all_values(rank, x))

    def mean(self, rank: int, x: Tensor) -> Tensor:
        return torch.stack(self.all_values(rank, x)).mean(dim=0)


@dataclasses.dataclass
class Result:
    """What a loss gives: on one process, or the mean over all."""

    value: Tensor
    leaves: dict[str, Tensor]  # gradient to each output of the student
    weights: dict[str, Tensor]  # gradient to each weight of the loss
    buffers: list[dict[str, Tensor]]  # of each rank after the step


def check_ranks(findings: Findings, term: nn.Module, params: LossParams, scene: Scene) -> None:
    """Check that value, gradients and buffers do not depend on the number of processes."""
    if params.per_process or scene.size < RANKS:
        return
    count = scene.size // RANKS
    rows = torch.arange(count * RANKS, device=next(iter(scene.views.values())).x.device)
    if compare(findings, term, scene.select(rows)):
        compare(findings, term, duplicated(scene.select(rows[:count])))


def duplicated(scene: Scene) -> Scene:
    """Return a scene in the middle of the run in which each sample meets one like it on the other process.

    A loss may compare only samples of one class or noise level, which a few samples lack, or begin to compare later.
    """
    rows = torch.arange(scene.size, device=next(iter(scene.views.values())).x.device)
    found = scene.select(rows.repeat(RANKS)).perturbed(0.1)
    return Scene(dataclasses.replace(found.ctx, step=found.ctx.total_steps // 2), found.views, found.outputs)


def compare(findings: Findings, term: nn.Module, scene: Scene) -> bool:
    """Note what of a loss depends on the number of processes. Returns whether nothing does."""
    rows = torch.arange(scene.size, device=next(iter(scene.views.values())).x.device)
    whole = evaluate(term, [scene])
    split = evaluate(term, [scene.select(part) for part in rows.chunk(RANKS)])
    tolerance = TOLERANCE.get(scene.dtype, LOOSE)
    fix = "compare with the samples of all processes: z = ctx.gather(z), and average over them with ctx.mean"
    fix += "; a loss that is meant for the samples of one process sets per_process"
    if not is_near(split.value, whole.value, tolerance):
        got = f"{split.value.item():.6g} on two processes, {whole.value.item():.6g} on one"
        findings.add("the loss depends on the number of processes", got=got, fix=fix)
        return False
    for kind in ("leaves", "weights"):
        one, two = getattr(whole, kind), getattr(split, kind)
        wrong = ", ".join(name for name in one if not is_near(two[name], one[name], 10 * tolerance))
        if wrong:
            got = f"another gradient to {wrong}"
            findings.add("the gradient of the loss depends on the number of processes", got=got, fix=fix)
            return False
    changed = [
        name
        for name, expected in whole.buffers[0].items()
        if not all(is_near(found[name], expected, 10 * tolerance) for found in split.buffers)
    ]
    fix = "average what is staged over all processes before it changes a buffer: ctx.mean(x)"
    for name in changed:
        findings.add(f"a buffer depends on the number of processes: {name}", fix=fix)
    return not changed


def evaluate(term: Any, scenes: list[Scene]) -> Result:
    """Return what a loss gives on processes that each hold one of the scenes, and its buffers after the step."""
    terms = [copy.deepcopy(term) for _ in scenes]

    def forward(rank: int, **exchange: Any) -> Tensor:
        value: Tensor = scenes[rank].value_of(terms[rank], **exchange)
        return value.mean()

    def finish(rank: int, **exchange: Any) -> None:
        with torch.no_grad():
            terms[rank].after_step(dataclasses.replace(scenes[rank].ctx, **exchange))

    value = torch.stack(on_ranks(len(scenes), forward)).mean()
    leaf_names = list(scenes[0].leaves["student"])
    weight_names = [name for name, weight in term.named_parameters() if weight.requires_grad]
    leaves = [list(scene.leaves["student"].values()) for scene in scenes]
    weights = [[weight for weight in own.parameters() if weight.requires_grad] for own in terms]
    found = iter(gradients_of(value, [x for part in (*leaves, *weights) for x in part]))
    of_leaves = [[next(found) for _ in part] for part in leaves]
    of_weights = [[next(found) for _ in part] for part in weights]
    on_ranks(len(scenes), finish)
    return Result(
        value.detach(),
        {name: torch.cat(parts) for name, *parts in zip(leaf_names, *of_leaves, strict=True)},
        {name: torch.stack(parts).sum(dim=0) for name, *parts in zip(weight_names, *of_weights, strict=True)},
        [{name: buffer.detach() for name, buffer in own.named_buffers()} for own in terms],
    )


def on_ranks(count: int, work: Callable[..., T]) -> list[T]:
    """Return `work(rank, gather=..., mean=...)` of each rank, run in threads. Raises the first failure of any."""
    if count == 1:
        return [work(0)]
    exchange = Exchange()
    results: dict[int, T] = {}
    failures: list[BaseException] = []

    def body(rank: int) -> None:
        try:
            results[rank] = work(rank, gather=partial(exchange.gather, rank), mean=partial(exchange.mean, rank))
            exchange.all_values(rank, FINISHED)
        except BaseException as failure:
            if not isinstance(failure, threading.BrokenBarrierError):
                failures.append(failure)
            exchange.barrier.abort()

    threads = [threading.Thread(target=body, args=(rank,), daemon=True) for rank in range(RANKS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    if exchange.barrier.broken:
        raise RuntimeError(UNEQUAL)
    return [results[rank] for rank in range(RANKS)]
