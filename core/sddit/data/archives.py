"""Read and write arrays in `.npz` files: small ones at once, large ones by rows. Files are untrusted. No torch."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import DTypeLike, NDArray

MAX_MEMBERS = 1000
MAX_BYTES = 64 * 2**30  # unpacked, in total; 50,000 images of 512 x 512 take 37 GiB
MAX_RATIO = 200  # unpacked to packed, above UNLIMITED_BYTES; photographs reach 2, an archive of zeros 1000
UNLIMITED_BYTES = 256 * 2**20  # unpacked; up to here any ratio is read


def load_arrays(path: Path, names: Iterable[str]) -> dict[str, NDArray[Any]]:
    """Return the named arrays that an `.npz` contains. Object arrays, which are pickles, are not read.

    Raises ValueError if the archive is damaged or exceeds the limits, OSError if the file cannot be opened.
    """
    with _damage():
        _refuse_large(path)
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in names if name in arrays}


@dataclass(frozen=True, slots=True)
class StoredArray:
    """An array of an `.npz` that is read by rows, because it may be larger than the memory.

    Reading raises ValueError if the archive is damaged or exceeds the limits, OSError if it cannot be opened.
    """

    path: Path
    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @classmethod
    def find(cls, path: Path, name: str) -> StoredArray | None:
        """Return the array of that name; None if the archive has none."""
        with _damage():
            _refuse_large(path)
            with zipfile.ZipFile(path) as archive:
                if f"{name}.npy" not in archive.namelist():
                    return None
                with archive.open(f"{name}.npy") as file:
                    return cls(path, name, *_read_header(file))

    def __len__(self) -> int:
        return self.shape[0]

    def batches(self, size: int) -> Iterator[NDArray[Any]]:
        """Yield consecutive parts of `size` rows; the last one may be smaller."""
        with _damage(), zipfile.ZipFile(self.path) as archive, archive.open(f"{self.name}.npy") as file:
            _read_header(file)
            row = int(np.prod(self.shape[1:])) * self.dtype.itemsize
            for start in range(0, len(self), size):
                count = min(size, len(self) - start)
                data = file.read(count * row)
                if len(data) < count * row:
                    raise ValueError(f"{self.name} ends before its last row")
                yield np.frombuffer(bytearray(data), self.dtype).reshape(count, *self.shape[1:])

    def rows(self, numbers: Sequence[int], size: int = 256) -> NDArray[Any]:
        """Return the rows of the given numbers, in their order."""
        found = np.empty((len(numbers), *self.shape[1:]), self.dtype)
        wanted = np.asarray(numbers, dtype=np.int64)
        for index, batch in enumerate(self.batches(size)):
            inside = np.flatnonzero(wanted // size == index)
            found[inside] = batch[wanted[inside] % size]
        return found


def write_arrays(
    file: IO[bytes], arrays: Mapping[str, tuple[DTypeLike, tuple[int, ...], Iterable[NDArray[Any]]]]
) -> None:
    """Write a compressed `.npz` as `numpy.savez_compressed` does, with arrays that are given in parts.

    Args:
        file: is written to.
        arrays: {name: (dtype, shape, parts along the first axis)}.
    """
    with zipfile.ZipFile(file, "w", compression=zipfile.ZIP_DEFLATED, allowZip64=True) as archive:
        for name, (dtype, shape, parts) in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                header = {"descr": npy.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": shape}
                npy.write_array_header_1_0(member, header)
                for part in parts:
                    member.write(np.ascontiguousarray(part, dtype).data)


@contextmanager
def _damage() -> Iterator[None]:
    """Turn the exceptions that zipfile and numpy raise on a damaged file, which may be any, into ValueError."""
    try:
        yield
    except (OSError, GeneratorExit):
        raise
    except Exception as broken:
        raise ValueError(f"{type(broken).__name__}: {broken}") from broken


def _refuse_large(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
    unpacked, packed = sum(member.file_size for member in members), sum(member.compress_size for member in members)
    if len(members) > MAX_MEMBERS or len({member.filename for member in members}) < len(members):
        raise ValueError(f"an archive of {len(members)} members, or of two of one name")
    if unpacked > MAX_BYTES or unpacked > max(UNLIMITED_BYTES, MAX_RATIO * packed):
        raise ValueError(f"{packed:,} bytes that unpack to {unpacked:,}: more than is read")


def _read_header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Return shape and dtype from the header of a `.npy`. Raises ValueError for object arrays and Fortran order."""
    version = npy.read_magic(file)
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, fortran_order, dtype = read(file)
    if dtype.hasobject or (fortran_order and len(shape) > 1):
        raise ValueError("an array of objects, which is a pickle" if dtype.hasobject else "an array in Fortran order")
    return shape, dtype
