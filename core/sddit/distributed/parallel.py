"""Wrap the model for several processes: DDP or FSDP2."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
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

# The module that is trained


def wrap_parallel(
    student: nn.Module, copies: Sequence[nn.Module], world: World, kind: Literal["ddp", "fsdp"]
) -> nn.Module:
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


def full_tensor(tensor: Tensor) -> Tensor:
    """All of a tensor of which this rank may hold a part. Every rank has to ask."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def shard_like(own: Tensor, tensor: Tensor) -> Tensor:
    """This rank's part of a whole tensor, as it holds a part of its `own` one."""
    if not isinstance(own, DTensor) or own.shape != tensor.shape:
        return tensor
    return distribute_tensor(tensor.to(own.device), own.device_mesh, own.placements, src_data_rank=None)


def shards_like(own: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same by name; a name that is not its own stays as it is, to be refused where it is loaded."""
    return {name: shard_like(own[name], tensor) if name in own else tensor for name, tensor in tensors.items()}


def gradient_accumulation(root: nn.Module, *, last: bool) -> AbstractContextManager[None]:
    """Around a forward and backward pass: gradients of all but the last micro-batch stay on this rank."""
    if isinstance(root, FSDPModule):
        root.set_requires_gradient_sync(last)
    if isinstance(root, DistributedDataParallel) and not last:
        held: AbstractContextManager[None] = root.no_sync()
        return held
    return nullcontext()


def reach_all_parameters(root: nn.Module, loss: Tensor) -> tuple[Tensor, list[bool]]:
    """`loss` with a gradient of 0 for every parameter that it does not reach, since DDP waits for each.

    Also, for each parameter, whether this batch had a gradient for it. Without DDP nothing waits and nothing is noted.
    """
    if not isinstance(root, DistributedDataParallel):
        return loss, []
    parameters = [parameter for parameter in root.parameters() if parameter.requires_grad]
    found = reached_parameters(loss)
    missing = [parameter for parameter in parameters if parameter not in found]
    zero = torch.stack([parameter.sum() for parameter in missing]).sum() * 0.0 if missing else 0.0
    return loss + zero, [parameter in found or parameter.grad is not None for parameter in parameters]


def reached_parameters(loss: Tensor) -> set[Tensor]:
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
