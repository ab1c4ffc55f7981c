"""Convert tensors to bytes and back, bit for bit, in the safetensors format, which cannot run code when read."""

from __future__ import annotations

from collections.abc import Mapping

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from sddit.errors import error

PICKLES = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")  # torch's zip files, and bare pickles


def pack(tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> bytes:
    """Return the bytes of named tensors of any shape, dtype, device and layout, with text about them.

    Shared memory is written once per tensor: safetensors requires contiguous CPU tensors that share no storage.
    """
    separate: dict[str, Tensor] = {}
    storages: set[int] = set()
    for name, tensor in tensors.items():
        dense = tensor.detach().cpu().contiguous()
        if dense.untyped_storage().data_ptr() in storages:
            dense = dense.clone()
        storages.add(dense.untyped_storage().data_ptr())
        separate[name] = dense
    return safetensors.torch.save(separate, metadata)


def unpack(data: bytes, where: str = "the file") -> dict[str, Tensor]:
    """Return tensors on the CPU from the bytes of `pack`. `where` names their origin in errors.

    Raises SD-C440 for a pickle, SD-C404 for anything else that is not safetensors.
    """
    try:
        return safetensors.torch.load(data)
    except (SafetensorError, ValueError) as cause:
        if data.startswith(PICKLES):
            what = "a pickle, which can run code when it is read"
            raise error("SD-C440", what, where=where, expect="safetensors") from cause
        raise error(
            "SD-C404", "not a safetensors file", where=where, got=str(cause), expect="a file written by sddit"
        ) from cause


def require_finite(tensors: Mapping[str, Tensor], where: str) -> None:
    """Raise SD-C450 with the first tensor that has a NaN or an infinity. `where` names the group, such as `ema`."""
    if name := non_finite(tensors):
        raise error("SD-C450", f"non-finite values in {where}:{name}", where=where, expect="finite numbers")


def non_finite(tensors: Mapping[str, Tensor]) -> str:
    """Return the name of the first tensor with a NaN or an infinity; empty if there is none."""
    return next((name for name, tensor in tensors.items() if not bool(torch.isfinite(tensor).all())), "")
