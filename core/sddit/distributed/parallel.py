"""Wrap the model in DDP or FSDP2, and convert between full tensors and shards."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from sddit.distributed.world import World


def wrap_parallel(
    student: nn.Module, copies: Sequence[nn.Module], world: World, kind: Literal["ddp", "fsdp"]
) -> nn.Module:
    """Return the module to call instead of the student: itself, or a wrapper that averages gradients over the ranks.

    With fsdp, each rank holds a shard of every weight of the student and of its `copies`, the teacher and the EMAs.
    """
    if world.size == 1:
        return student
    if kind == "fsdp":
        shard(student)
        for copy in copies:
            shard(copy, reshard_after_forward=True)  # no backward pass will do it
        return student
    with warnings.catch_warnings():  # newer versions of torch rename the argument
        warnings.simplefilter("ignore", FutureWarning)
        # Buffers change in `after_step`, in the same way on all ranks.
        return DistributedDataParallel(student, broadcast_buffers=False)


def shard(module: nn.Module, *, reshard_after_forward: bool | None = None) -> None:
    """Shard the weights over the ranks: one group per block where the module has blocks, one group for the rest."""
    mesh = init_device_mesh(next(module.parameters()).device.type, (dist.get_world_size(),))
    for part in module.modules():
        for block in getattr(part, "blocks", ()):
            fully_shard(block, mesh=mesh)
    fully_shard(module, mesh=mesh, reshard_after_forward=reshard_after_forward)


def full_tensor(tensor: Tensor) -> Tensor:
    """Return the full tensor if this rank holds a shard. Every rank must call this."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def shard_like(own: Tensor, tensor: Tensor) -> Tensor:
    """Return this rank's shard of a full tensor, sharded like its `own`."""
    if not isinstance(own, DTensor) or own.shape != tensor.shape:
        return tensor
    return distribute_tensor(tensor.to(own.device), own.device_mesh, own.placements, src_data_rank=None)


def gradient_accumulation(root: nn.Module, *, last: bool) -> AbstractContextManager[None]:
    """Keep the gradients of all but the last micro-batch on this rank. Wrap a forward and backward pass in it."""
    if isinstance(root, FSDPModule):
        root.set_requires_gradient_sync(last)
    if isinstance(root, DistributedDataParallel) and not last:
        held: AbstractContextManager[None] = root.no_sync()
        return held
    return nullcontext()


def reach_all_parameters(root: nn.Module, loss: Tensor) -> tuple[Tensor, list[bool]]:
    """Return `loss` with a gradient of 0 for each parameter that it does not reach: DDP waits for every parameter.

    Also returns, for each parameter, whether this batch has a gradient for it. Without DDP this list is empty.
    """
    if not isinstance(root, DistributedDataParallel):
        return loss, []
    parameters = [parameter for parameter in root.parameters() if parameter.requires_grad]
    found = reached_parameters(loss)
    missing = [parameter for parameter in parameters if parameter not in found]
    zero = torch.stack([parameter.sum() for parameter in missing]).sum() * 0.0 if missing else 0.0
    return loss + zero, [parameter in found or parameter.grad is not None for parameter in parameters]


def reached_parameters(loss: Tensor) -> set[Tensor]:
    """Return the parameters that a backward pass from `loss` reaches."""
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
