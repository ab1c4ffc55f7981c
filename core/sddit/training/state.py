"""Save and restore the state of a session."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from sddit.distributed.parallel import full_tensor, shard_like
from sddit.errors import error
from sddit.storage.manifest import Checkpoint, Content, LazyBytes
from sddit.storage.tensors import non_finite, pack, require_finite, unpack
from sddit.training.ema import tensors_of, with_prefix
from sddit.training.optimization import group_numbers
from sddit.training.session import Session

SNAPSHOT_DTYPES = {"fp32": torch.float32, "fp16": torch.float16}


def checkpoint_files(session: Session, extra: Mapping[str, Any], *, copy: bool = False) -> dict[str, Content]:
    """Return the contents of a checkpoint by file name. No random state is needed: every draw is keyed.

    Tensors are packed when a file is written: until then the session must not change, unless `copy` copies them to
    the CPU first. Writing raises SD-N502 for a non-finite tensor.
    """
    optimizer, numbers = split_optimizer(session.optimizer)
    tensors: dict[str, Mapping[str, Tensor]] = {"model": session.student.state_dict(), "optimizer": optimizer}
    tensors |= {name: tensors_of(modules) for name, modules in session.copies().items()}
    if isinstance(session.root, FSDPModule):
        # In order of names: all ranks must request the same tensor at once, and a restored state has no order.
        tensors = {name: {k: full_tensor(group[k]).cpu() for k in sorted(group)} for name, group in tensors.items()}
    files: dict[str, Content] = {}
    for name, group in tensors.items():
        held = {k: v.detach().to("cpu", copy=True) for k, v in group.items()} if copy else group
        size = sum(tensor.nbytes for tensor in held.values())
        files[f"{name}.safetensors"] = LazyBytes(size, partial(pack_finite, name, held))
    files["state.json"] = json.dumps(plain_state(session, numbers) | dict(extra), allow_nan=False, indent=1).encode()
    return files


def snapshot_files(session: Session, labels: Sequence[str]) -> dict[str, Content]:
    """Return the contents of a snapshot of EMAs by file name: parameters in their `snapshot_dtype`, and buffers.

    Every rank must call this. Raises SD-N503 for a parameter that half precision cannot hold.
    """
    files: dict[str, Content] = {}
    stated: dict[str, Any] = {}
    for label in labels:
        ema = session.emas[label]
        tensors = {name: full_tensor(tensor).cpu() for name, tensor in sorted(ema.module.state_dict().items())}
        buffers = sorted({name for name, _ in ema.module.named_buffers()} & tensors.keys())
        parameters = {name: tensor for name, tensor in tensors.items() if name not in buffers}
        rounded = round_parameters(label, parameters, SNAPSHOT_DTYPES[ema.settings.snapshot_dtype])
        held = rounded | {name: tensors[name] for name in buffers}
        size = sum(tensor.nbytes for tensor in held.values())
        files[f"{label}.safetensors"] = LazyBytes(size, partial(pack_finite, label, held))
        stated[label] = {"sigma_rel": ema.settings.sigma_rel, "buffers": buffers}
    state = {"step": session.step, "taken": session.num_taken, "averages": stated}
    return files | {"state.json": json.dumps(state, allow_nan=False, indent=1).encode()}


def round_parameters(label: str, parameters: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """Return parameters in a precision for storage. Raises SD-N503 if one exceeds its range."""
    rounded = {name: tensor.to(dtype) for name, tensor in parameters.items()}
    if (name := non_finite(rounded)) and bool(torch.isfinite(parameters[name]).all()):
        raise error(
            "SD-N503",
            f"a weight of the snapshot exceeds the range of half precision: {name}",
            where=f"ema.{label}.snapshot_dtype",
            got=f"{float(parameters[name].abs().max()):.4g}",
            expect=f"at most {torch.finfo(dtype).max:.4g}",
            fix=f'ema.{label}.snapshot_dtype = "fp32"',
        )
    return rounded


def plain_state(session: Session, numbers: Mapping[str, Any]) -> dict[str, Any]:
    """Return everything that is not a tensor, as stored in `state.json`; `numbers` are those of `split_optimizer`."""
    state = session.optimizer.state_dict()["state"]
    return {
        "step": session.step,
        "images": session.step * session.recipe.train.batch,
        "seed": session.recipe.seed,
        "seconds": session.seconds,
        "threads": torch.get_num_threads(),
        "tally": {name: [number.hex() for number in sums.tolist()] for name, sums in session.sums.items()},
        "optimizer": numbers,
        "optimized": {str(index): sorted(entries) for index, entries in sorted(state.items())},
        "counted": changed_numbers(session.optimizer, session.initial_group_numbers),
        "skipped": session.skipped,
        "log_cursor": 0,
    }


def pack_finite(name: str, tensors: Mapping[str, Tensor]) -> bytes:
    """Pack tensors into the bytes of a file. Raises SD-N502 if one is non-finite: such a state is never saved."""
    if bad := non_finite(tensors):
        raise error(
            "SD-N502",
            f"non-finite values in {name}:{bad}; the checkpoint is not saved",
            where=name,
            got="a NaN or an infinity",
            fix="lower optimizer.lr, then rerun: it resumes from the newest checkpoint",
        )
    return pack(tensors)


def restore(session: Session, checkpoint: Checkpoint) -> dict[str, Any]:
    """Restore a session from a checkpoint, and return its state.json. A missing item is an error."""
    state = checkpoint.state
    if "imported" in state:
        raise error(
            "SD-C448",
            "imported weights cannot be resumed: they have no optimizer state and no log",
            where=str(checkpoint.folder),
            fix=f'a recipe with [start] run = "{checkpoint.folder.parents[1]}"',
        )

    def read(name: str) -> dict[str, Tensor]:
        where = f"{checkpoint.folder.name}/{name}.safetensors"
        tensors = unpack(checkpoint.read(f"{name}.safetensors"), where)
        require_finite(tensors, where)
        return tensors

    try:
        for name in plain_state(session, {}).keys() - state.keys():
            raise KeyError(f"state.json: {name} is missing")
        load(session.student, read("model"))
        join_optimizer(session.optimizer, read("optimizer"), state["optimizer"], state["optimized"], state["counted"])
        for name, modules in session.copies().items():
            stored = read(name)
            for part, module in modules.items():
                load(module, with_prefix(f"{part}.", stored))
        session.step = int(state["step"])
        session.seconds = float(state["seconds"])
        session.skipped = list(state["skipped"])
        session.sums = {
            name: torch.tensor([float.fromhex(number) for number in sums], dtype=torch.float64, device=session.device)
            for name, sums in state["tally"].items()
        }
    except (KeyError, RuntimeError, FileNotFoundError, TypeError, ValueError, AttributeError) as mismatch:
        first = next(iter(str(mismatch).splitlines()), type(mismatch).__name__)
        raise error(
            "SD-C410",
            "the checkpoint does not fit this recipe",
            where=str(checkpoint.folder),
            got=first,
            expect="a checkpoint of the same recipe",
            fix="start over with --fresh, or use the recipe that wrote it",
        ) from mismatch
    return state


def load(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Load full tensors strictly, also into a module that is sharded over the ranks."""
    own = module.state_dict()
    module.load_state_dict({k: shard_like(own[k], v) if k in own else v for k, v in tensors.items()})


def split_optimizer(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Split an optimizer's state into tensors and plain numbers."""
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, dict[str, Any]] = {}
    for index, entries in optimizer.state_dict()["state"].items():
        for name, value in entries.items():
            if isinstance(value, Tensor):
                tensors[f"{index}.{name}"] = value
            else:
                numbers.setdefault(str(index), {})[name] = value
    return tensors, numbers


def changed_numbers(optimizer: torch.optim.Optimizer, initial: Sequence[Mapping[str, float]]) -> list[dict[str, float]]:
    """Return the numbers of each group that differ from the initial ones: counters, not settings of the recipe."""
    return [
        {key: value for key, value in now.items() if built.get(key) != value}
        for now, built in zip(group_numbers(optimizer), initial, strict=True)
    ]


def join_optimizer(
    optimizer: torch.optim.Optimizer,
    tensors: Mapping[str, Tensor],
    numbers: Mapping[str, Mapping[str, Any]],
    optimized: Mapping[str, Sequence[str]],
    counted: Sequence[Mapping[str, float]],
) -> None:
    """Restore what `split_optimizer` and `changed_numbers` returned. Settings come from the recipe.

    `optimized` names the entries of each parameter that ever had a gradient. Raises KeyError if one is missing, or if a
    state belongs to no parameter: an earlier version also gave frozen parameters to the optimizer.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if surplus := [index for index in optimized if int(index) >= len(parameters)]:
        raise KeyError(f"the optimizer has {len(parameters)} parameters and a state of number {surplus[-1]}")
    state: dict[int, dict[str, Any]] = {int(index): dict(entries) for index, entries in numbers.items()}
    for key, value in tensors.items():
        index, _, name = key.partition(".")
        state.setdefault(int(index), {})[name] = shard_like(parameters[int(index)], value)
    for wanted, names in optimized.items():
        if not state.get(int(wanted), {}).keys() >= set(names):
            raise KeyError(f"optimizer state of parameter {wanted} is missing")
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    for group, counts in zip(optimizer.param_groups, counted, strict=True):
        group.update(counts)
