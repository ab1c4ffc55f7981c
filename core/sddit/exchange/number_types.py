"""Convert weights of few bits exactly, and refuse those that are not real numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import torch
from torch import Tensor

from sddit.errors import error

READ = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
WIDENED = tuple(
    getattr(torch, name)
    for name in ("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz")
    if hasattr(torch, name)
)
"""Types of 8 bits whose values are all float32 values. float8_e8m0fnu is omitted: it holds scales, not weights."""


def type_name(dtype: torch.dtype) -> str:
    """Return `float32`."""
    return str(dtype).removeprefix("torch.")


def exact_floats(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Return the tensors with those of 8-bit floating point as float32, which is exact, and a note for each type."""
    counts = Counter(tensor.dtype for tensor in state.values() if tensor.dtype in WIDENED)
    widened = {name: t.to(torch.float32) if t.dtype in WIDENED else t for name, t in state.items()}
    return widened, tuple(
        f"converted: {count} tensors of {type_name(dtype)} to float32, exactly" for dtype, count in counts.items()
    )


def spacing(tensor: Tensor) -> float:
    """Return the spacing of values near 1 in the type that a tensor was stored in, of 8 bits if all its values fit."""
    eights = (dtype for dtype in WIDENED if torch.equal(tensor.to(dtype).to(tensor.dtype), tensor))
    return max(torch.finfo(dtype).eps for dtype in (tensor.dtype, *eights))


def refuse_other_types(state: Mapping[str, Tensor], where: str) -> None:
    """Raise SD-C458 for weights that are not of a type in READ, such as integers of a quantized network."""
    unread = {name: tensor for name, tensor in state.items() if tensor.dtype not in READ}
    if not unread:
        return
    name, tensor = next(iter(unread.items()))
    known = ", ".join(type_name(dtype) for dtype in (*READ, *WIDENED))
    types = ", ".join(sorted({type_name(tensor.dtype) for tensor in unread.values()}))
    raise error(
        "SD-C458",
        f"weights of type {type_name(tensor.dtype)} are not read",
        where=f"{where} ({name})",
        got=f"{len(unread)} of {len(state)} tensors of {types}",
        expect=f"one of {known}",
    )


def rounded(state: Mapping[str, Tensor], dtype: torch.dtype) -> list[str]:
    """Return a note for each type of tensors whose values are rounded in `dtype`."""
    counts = Counter(tensor.dtype for tensor in state.values() if torch.promote_types(tensor.dtype, dtype) != dtype)
    return [f"rounded: {count} tensors of {type_name(other)} to {type_name(dtype)}" for other, count in counts.items()]
