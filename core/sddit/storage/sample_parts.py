"""Keep samples on disk while they are generated: in parts, so that they need not fit in memory and survive a kill."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from sddit.storage import atomic
from sddit.storage.atomic import STAGED_PREFIX, remove_folder, replace_file, storage_errors
from sddit.storage.tensors import pack

ABOUT = "about.json"
PART = "part-*.safetensors"


class SampleParts:
    """The samples of one request, numbers 0 to `count`, in a folder of files `part-START-SHA256.safetensors`.

    Other files in the folder are kept.

    Args:
        folder: is created; parts of another `identity` in it are removed.
        identity: what the samples depend on, of values that JSON can hold.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any]) -> None:
        self.folder = folder
        with storage_errors(folder):
            if folder.is_symlink():
                folder.unlink()
            folder.mkdir(parents=True, exist_ok=True)
            if not find_parts([folder], identity):
                self._remove_files()
                replace_file(folder / ABOUT, _about(identity))
            for leftover in folder.glob(f"{STAGED_PREFIX}*"):
                leftover.unlink()
            self.count = 0
            self._paths: list[Path] = []
            for path in sorted(folder.glob(PART)):
                size = _size_of(path) if path.name.startswith(_begin_of(self.count)) else 0
                if size:
                    self._add(path, size)
                else:  # damaged, or after a damaged one
                    _remove(path)

    def append(self, tensors: Mapping[str, Tensor]) -> None:
        """Store the next samples: tensors [n, ...] by name, the same names in every part."""
        data = pack(tensors)
        path = self.folder / f"{_begin_of(self.count)}{sha256(data).hexdigest()}.safetensors"
        replace_file(path, data)
        self._add(path, len(next(iter(tensors.values()))))

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the tensors; empty if there are no parts."""
        if not self._paths:
            return ()
        with storage_errors(self._paths[0]), safe_open(self._paths[0], framework="pt") as file:
            return tuple(file.keys())

    def read(self, name: str) -> Iterator[Tensor]:
        """Yield the tensors of that name, part by part; nothing if there are none."""
        for path in self._paths if name in self.names else ():
            with storage_errors(path), safe_open(path, framework="pt") as file:
                yield file.get_tensor(name)

    def rows(self, name: str, numbers: Sequence[int]) -> Tensor:
        """Return the tensors of that name of the given samples, in their order."""
        wanted = torch.tensor(numbers)
        found: Tensor | None = None
        start = 0
        for part in self.read(name):
            found = part.new_empty(len(numbers), *part.shape[1:]) if found is None else found
            inside = (wanted >= start) & (wanted < start + len(part))
            found[inside] = part[wanted[inside] - start]
            start += len(part)
        assert found is not None  # there are samples
        return found

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of all samples of that name together."""
        return (self.count, *next(self.read(name)).shape[1:])

    def remove(self) -> None:
        """Remove the parts, and the folder unless it holds other files."""
        with suppress(OSError):
            self._remove_files()
            self.folder.rmdir()

    def _remove_files(self) -> None:
        for path in (*self.folder.glob(PART), self.folder / ABOUT):  # ABOUT last: until then they can be continued
            _remove(path)

    def _add(self, path: Path, size: int) -> None:
        self._paths.append(path)
        self.count += size


def find_parts(folders: Iterable[Path], identity: Mapping[str, Any]) -> Path | None:
    """Return the first folder whose parts have this identity; None if there is none."""
    return next((folder for folder in folders if _identity_in(folder) == _about(identity)), None)


def _about(identity: Mapping[str, Any]) -> bytes:
    return json.dumps(identity, indent=1, sort_keys=True).encode() + b"\n"


def _identity_in(folder: Path) -> bytes:
    try:
        return b"" if folder.is_symlink() else atomic.read_file(folder / ABOUT)
    except OSError:
        return b""


def _begin_of(start: int) -> str:
    """Return how the name of the part begins whose first sample has this number."""
    return f"part-{start:09d}-"


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        remove_folder(path)
    else:
        path.unlink(missing_ok=True)


def _size_of(path: Path) -> int:
    """Return the number of samples in a part; 0 if it is unreadable or not what was written."""
    try:
        data = b"" if path.is_symlink() else atomic.read_file(path)
        if sha256(data).hexdigest() != path.stem.rpartition("-")[2]:
            return 0
        return int(min(len(tensor) for tensor in safetensors.torch.load(data).values()))
    except (OSError, SafetensorError, ValueError, TypeError):
        return 0
