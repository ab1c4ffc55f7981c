"""Where a pickle is read: weights of published implementations, and only when the user trusts the file.

A pickle is a program. Before torch sees a file its program is read as text: it may name the few things that weights are
made of and nothing else. Then torch's own restricted reader loads it, and there is no other way if that refuses.
"""

from __future__ import annotations

import pickletools
import zipfile
from argparse import Namespace
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sddit.errors import error

MOST_BYTES = 32 * 2**30  # of a file; DiT-XL/2 with its average and its optimizer takes 11
MOST_PROGRAM = 64 * 2**20  # of the pickle itself, whose tensors lie beside it
MOST_SHARING = 4  # tied weights and a view or two; each name is a tensor of its own once it is copied
ALLOWED = {
    "collections OrderedDict",
    "argparse Namespace",  # the arguments of the training script, in DiT's and MaskDiT's files
    "torch Size",
    "torch device",
    "torch._utils _rebuild_tensor_v2",
    "torch._utils _rebuild_parameter",
    *(
        f"torch {kind}Storage"
        for kind in ("Float", "Double", "Half", "BFloat16", "Long", "Int", "Short", "Char", "Byte", "Bool")
    ),
}
BY_STACK = {"STACK_GLOBAL", "INST", "OBJ", "EXT1", "EXT2", "EXT4"}  # ways to name things that torch.save does not use


def load_pickle(path: Path) -> Any:
    """What a `.pt` file of torch.save holds, on the CPU; its tensors stay in the file until they are read.

    Raises SD-C440 for a file that would run anything but the making of tensors or whose tensors claim more than it holds,
    SD-C404 for one that is no such file.
    """
    _refuse_program(path, _program_of(path))
    try:
        with torch.serialization.safe_globals([Namespace]):
            held = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as refused:  # whatever torch says: it did not load, and nothing else is tried
        raise error(
            "SD-C404",
            "the file cannot be read",
            where=str(path),
            got=str(refused).partition("\n")[0][:160],
            fix="fetch it again, or convert it to safetensors where it can be read",
        ) from refused
    _refuse_expanded(path, held)
    return held


def _refuse_expanded(path: Path, held: Any) -> None:
    """A tensor that repeats its numbers by strides of 0 may be of any size in a file of a few bytes; so may many that share."""
    claimed, held_bytes = 0, {}
    for tensor in _tensors(held):
        claimed += tensor.numel() * tensor.element_size()
        held_bytes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        holds = tensor.untyped_storage().nbytes() // tensor.element_size()
        if tensor.numel() > holds:
            raise error(
                "SD-C440",
                "a tensor of this pickle claims more numbers than the file holds",
                where=str(path),
                got=f"{tensor.numel():,} of shape {list(tensor.shape)}",
                expect=f"at most the {holds:,} that are there",
                fix="do not load it; ask its author for safetensors",
            )
    if claimed > MOST_SHARING * sum(held_bytes.values()):
        raise error(
            "SD-C440",
            "the tensors of this pickle share their numbers under too many names",
            where=str(path),
            got=f"{claimed:,} bytes once each is copied",
            expect=f"at most {MOST_SHARING} times the {sum(held_bytes.values()):,} that are there",
            fix="do not load it; ask its author for safetensors",
        )


def _tensors(held: Any) -> Iterator[Tensor]:
    """Every tensor in nested dicts, lists and arguments, which may hold themselves."""
    waiting, seen = [held], set()
    while waiting:
        value = waiting.pop()
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, Mapping | list | tuple | Namespace) and id(value) not in seen:
            seen.add(id(value))
            inside = vars(value) if isinstance(value, Namespace) else value
            waiting += inside.values() if isinstance(inside, Mapping) else inside


def _program_of(path: Path) -> bytes:
    """The pickle inside a zip file as torch.save writes it: members as they are, one of them `<name>/data.pkl`."""
    size = path.stat().st_size
    if size > MOST_BYTES:
        raise error(
            "SD-C440", "the pickle is too large", where=str(path), got=f"{size:,} bytes", expect=f"{MOST_BYTES:,}"
        )
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            programs = [member for member in members if member.filename.endswith(".pkl")]
            packed = any(member.compress_type != zipfile.ZIP_STORED or member.flag_bits & 1 for member in members)
            whole = sum(member.file_size for member in members) <= size
            if packed or not whole or len(programs) != 1 or not programs[0].filename.endswith("/data.pkl"):
                raise zipfile.BadZipFile("not as torch.save writes it")
            if programs[0].file_size > MOST_PROGRAM:
                raise zipfile.BadZipFile("its pickle is too long")
            return archive.read(programs[0])
    except (zipfile.BadZipFile, OSError, EOFError, NotImplementedError) as fault:
        raise error(
            "SD-C404",
            "this is no whole file of torch.save",
            where=str(path),
            got=str(fault),
            expect="a zip file with data.pkl, as torch writes it since version 1.6",
            fix="download it again, or ask its author for safetensors",
        ) from fault


def _refuse_program(path: Path, program: bytes) -> None:
    """Read the pickle without running it."""
    try:
        for opcode, argument, _ in pickletools.genops(program):
            if opcode.name in BY_STACK or (opcode.name == "GLOBAL" and argument not in ALLOWED):
                named = str(argument).replace(" ", ".") if opcode.name == "GLOBAL" else opcode.name
                raise error(
                    "SD-C440",
                    "this pickle does more than hold weights; nothing of it was run",
                    where=str(path),
                    got=named,
                    expect="tensors, numbers, texts, dicts and lists",
                    fix="do not load it; ask its author for safetensors",
                )
    except (ValueError, IndexError, KeyError, UnicodeDecodeError) as fault:
        raise error(
            "SD-C404", "the pickle is broken", where=str(path), got=str(fault)[:160], fix="fetch it again"
        ) from fault
