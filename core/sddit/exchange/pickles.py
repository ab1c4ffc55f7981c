"""Read pickled weights of published implementations, only if the user trusts the file.

A pickle is a program. Before torch opens the file, the program is scanned without running it: it may name only the few
types that weights consist of. Then torch's restricted reader (`weights_only`) loads it; there is no fallback.
"""

from __future__ import annotations

import pickletools
import re
import zipfile
from argparse import Namespace
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sddit.errors import error

MAX_BYTES = 32 * 2**30  # of a file; DiT-XL/2 with EMA and optimizer state takes 11 GB
MAX_PROGRAM = 64 * 2**20  # bytes of the pickle itself, without the tensors
MAX_SHARING = 4  # times the stored bytes after copying: tied weights and a view or two
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
    "torch ComplexFloatStorage",
    "torch ComplexDoubleStorage",
    # Newer types, such as those of 8 bits, are stored as bytes next to the name of the type.
    "torch._utils _rebuild_tensor_v3",
    "torch.storage UntypedStorage",
    *(f"torch {name}" for name in dir(torch) if re.fullmatch(r"(float|complex|u?int)\d.*", name)),
}
BY_STACK = {"STACK_GLOBAL", "INST", "OBJ", "EXT1", "EXT2", "EXT4"}
"""Opcodes that name objects and that torch.save does not use."""
REFUSED = "do not load it; ask its author for safetensors"


def load_pickle(path: Path) -> Any:
    """Load a `.pt` file of torch.save on the CPU, memory-mapped.

    Raises SD-C440 for a file that would do more than create tensors or whose tensors claim more bytes than it holds,
    SD-C404 for any other file.
    """
    _refuse_program(path, _read_program(path))
    try:
        with torch.serialization.safe_globals([Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as refused:  # any failure: nothing else is tried
        raise error(
            "SD-C404",
            "the file cannot be read",
            where=str(path),
            got=str(refused).partition("\n")[0][:160],
            fix="download it again, or convert it to safetensors on a machine that can read it",
        ) from refused
    _refuse_expanded(path, content)
    return content


def _refuse_expanded(path: Path, content: Any) -> None:
    """Raise SD-C440 for tensors much larger than their storage: strides of 0 or many names for one storage."""
    claimed, stored_bytes = 0, {}
    for tensor in _tensors(content):
        claimed += tensor.numel() * tensor.element_size()
        stored_bytes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        holds = tensor.untyped_storage().nbytes() // tensor.element_size()
        if tensor.numel() > holds:
            raise error(
                "SD-C440",
                "a tensor of this pickle is larger than its stored data",
                where=str(path),
                got=f"{tensor.numel():,} values, shape {list(tensor.shape)}",
                expect=f"at most the {holds:,} stored values",
                fix=REFUSED,
            )
    if claimed > MAX_SHARING * sum(stored_bytes.values()):
        raise error(
            "SD-C440",
            "too many tensors of this pickle share the same data",
            where=str(path),
            got=f"{claimed:,} bytes once each is copied",
            expect=f"at most {MAX_SHARING} times the {sum(stored_bytes.values()):,} stored bytes",
            fix=REFUSED,
        )


def _tensors(content: Any) -> Iterator[Tensor]:
    """Yield every tensor in nested dicts, lists and namespaces, which may contain themselves."""
    waiting, seen = [content], set()
    while waiting:
        value = waiting.pop()
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, Mapping | list | tuple | Namespace) and id(value) not in seen:
            seen.add(id(value))
            inside = vars(value) if isinstance(value, Namespace) else value
            waiting += inside.values() if isinstance(inside, Mapping) else inside


def _read_program(path: Path) -> bytes:
    """Return the pickle in a zip file of torch.save: members uncompressed, one of them `<name>/data.pkl`."""
    size = path.stat().st_size
    if size > MAX_BYTES:
        got, expect = f"{size:,} bytes", f"at most {MAX_BYTES:,}"
        raise error("SD-C440", "the pickle is too large", where=str(path), got=got, expect=expect, fix=REFUSED)
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            programs = [member for member in members if member.filename.endswith(".pkl")]
            packed = any(member.compress_type != zipfile.ZIP_STORED or member.flag_bits & 1 for member in members)
            fits = sum(member.file_size for member in members) <= size
            if packed or not fits or len(programs) != 1 or not programs[0].filename.endswith("/data.pkl"):
                raise zipfile.BadZipFile("not the layout that torch.save writes")
            if programs[0].file_size > MAX_PROGRAM:
                raise zipfile.BadZipFile("the pickle in it is too large")
            return archive.read(programs[0])
    except (zipfile.BadZipFile, OSError, EOFError, NotImplementedError) as fault:
        raise error(
            "SD-C404",
            "truncated, or not written by torch.save",
            where=str(path),
            got=str(fault),
            expect="a zip file with data.pkl, the format of torch.save since version 1.6",
            fix="download it again, or ask its author for safetensors",
        ) from fault


def _refuse_program(path: Path, program: bytes) -> None:
    """Scan the pickle without running it. Raises SD-C440 if it names anything but tensors and containers."""
    try:
        for opcode, argument, _ in pickletools.genops(program):
            if opcode.name in BY_STACK or (opcode.name == "GLOBAL" and argument not in ALLOWED):
                named = str(argument).replace(" ", ".") if opcode.name == "GLOBAL" else opcode.name
                raise error(
                    "SD-C440",
                    "the pickle does more than hold weights; nothing in it was run",
                    where=str(path),
                    got=named,
                    expect="tensors, numbers, strings, dicts and lists",
                    fix=REFUSED,
                )
    except (ValueError, IndexError, KeyError, UnicodeDecodeError) as fault:
        raise error(
            "SD-C404", "the pickle is damaged", where=str(path), got=str(fault)[:160], fix="download it again"
        ) from fault
