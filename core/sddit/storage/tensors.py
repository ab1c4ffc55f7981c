"""Tensors to bytes and back, bit for bit, in the safetensors format: reading one runs no code."""

from __future__ import annotations

from collections.abc import Mapping

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from sddit.errors import error

PICKLES = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")  # torch's zip files, and bare pickles


def pack(tensors: Mapping[str, Tensor]) -> bytes:
    """The bytes of named tensors of any shape, dtype, device and layout. Tensors that share memory are each written."""
    return safetensors.torch.save(_apart(tensors))


def unpack(data: bytes, where: str = "the file") -> dict[str, Tensor]:
    """Tensors on the CPU from the bytes of `pack`, which came from `where`.

    Raises SD-C440 for a pickle, SD-C404 for what is no safetensors.
    """
    try:
        return safetensors.torch.load(data)
    except (SafetensorError, ValueError) as cause:
        if data.startswith(PICKLES):
            raise error(
                "SD-C440",
                "this is a pickle, which can run code when read",
                where=where,
                expect="safetensors",
                fix="convert it first",
            ) from cause
        raise error(
            "SD-C404", "not a safetensors file", where=where, got=str(cause), expect="a file written by sddit"
        ) from cause


def require_finite(tensors: Mapping[str, Tensor], where: str) -> None:
    """SD-C450 naming the first tensor with a NaN or an infinity. `where` says what they are, such as `ema`."""
    if name := non_finite(tensors):
        raise error(
            "SD-C450",
            f"non-finite values in {where}:{name}",
            where=where,
            expect="finite numbers",
            fix="use an earlier step",
        )


def non_finite(tensors: Mapping[str, Tensor]) -> str:
    """The name of the first tensor with a NaN or an infinity; empty: there is none."""
    return next((name for name, tensor in tensors.items() if not bool(torch.isfinite(tensor).all())), "")


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Dense copies where needed: safetensors takes contiguous CPU tensors, no two of them in one storage."""
    apart: dict[str, Tensor] = {}
    storages: set[int] = set()
    for name, tensor in tensors.items():
        dense = tensor.detach().cpu().contiguous()
        if dense.untyped_storage().data_ptr() in storages:
            dense = dense.clone()
        storages.add(dense.untyped_storage().data_ptr())
        apart[name] = dense
    return apart
