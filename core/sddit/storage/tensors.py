"""Convert tensors to bytes and back, bit for bit, in the safetensors format, which cannot run code when read."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from typing import Any, BinaryIO

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from sddit.errors import error

HEADER = 8  # bytes that hold the length of a header
DTYPES = {torch.int64: "I64", torch.float32: "F32", torch.float16: "F16", torch.uint8: "U8"}  # as the format names them
COMPARED = 1 << 24  # bytes that are compared at once
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
    packed = bytes(safetensors.torch.save(separate, metadata) or b"")
    refuse_other_bytes(packed, separate)
    return packed


def write_tensors(
    file: BinaryIO,
    tensors: Mapping[str, tuple[torch.dtype, tuple[int, ...], Iterable[Tensor]]],
    metadata: dict[str, str],
) -> None:
    """Write a safetensors file of tensors that are given in parts, because they may be larger than the memory.

    Args:
        file: is written to.
        tensors: {name: (dtype, shape, parts along the first axis)}. Those with larger numbers come first: the format
            requires that each begins at a multiple of the size of its numbers.
        metadata: text about the tensors.
    """
    header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    begin = 0
    for name, (dtype, shape, _) in tensors.items():
        end = begin + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": DTYPES[dtype], "shape": list(shape), "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % HEADER)
    file.write(len(text).to_bytes(HEADER, "little") + text)
    for dtype, _, parts in tensors.values():
        for part in parts:
            file.write(part.to(dtype).contiguous().reshape(-1).view(torch.uint8).numpy().data)


def refuse_other_bytes(packed: bytes, tensors: Mapping[str, Tensor]) -> None:
    """Raise SD-P228 unless the bytes hold exactly these tensors: a plugin may have replaced the function that packs.

    The format is a length, a header in JSON with dtype, shape and place of each tensor, and the bytes of all tensors.
    """
    try:
        end = HEADER + int.from_bytes(packed[:HEADER], "little")
        header = json.loads(packed[HEADER:end])
        header.pop("__metadata__", None)
        places = {name: record["data_offsets"] for name, record in header.items()}
        bad = next((name for name in tensors if not _holds(packed, end, header[name], tensors[name])), "")
        complete = places.keys() == tensors.keys() and sum(stop - start for start, stop in places.values()) == (
            len(packed) - end
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        bad, complete = "", False
    if bad or not complete:
        code = getattr(safetensors.torch.save, "__code__", None)
        raise error(
            "SD-P228",
            "safetensors.torch.save gave other bytes than the tensors to save",
            where=f"{code.co_filename}:{code.co_firstlineno}" if code else "safetensors.torch.save",
            got=f"{len(packed):,} bytes" + (f", in which {bad!r} differs" if bad else ""),
            expect=f"{sum(tensor.nbytes for tensor in tensors.values()):,} bytes of tensors, and a header",
            fix="remove what replaces that function, or install safetensors again",
        )


def _holds(packed: bytes, begin: int, record: Mapping[str, Any], tensor: Tensor) -> bool:
    """Return whether the bytes hold a tensor at the place that its record states. Compares in parts, to save memory."""
    start, stop = record["data_offsets"]
    if record["shape"] != list(tensor.shape) or stop - start != tensor.nbytes or len(packed) < begin + stop:
        return False
    own = tensor.reshape(-1).view(torch.uint8).numpy().data
    stored = memoryview(packed)[begin + start : begin + stop]
    return all(
        stored[at : at + COMPARED].tobytes() == own[at : at + COMPARED].tobytes()
        for at in range(0, tensor.nbytes, COMPARED)
    )


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
