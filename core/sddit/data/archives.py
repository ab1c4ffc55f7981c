"""Read arrays of an untrusted `.npz` in memory, without extracting it and within limits. No torch."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

MAX_MEMBERS = 1000
MAX_BYTES = 64 * 2**30  # unpacked, in total; 50,000 images of 512 x 512 take 37 GiB
MAX_RATIO = 200  # unpacked to packed, above UNLIMITED_BYTES; photographs reach 2, an archive of zeros 1000
UNLIMITED_BYTES = 256 * 2**20  # unpacked; up to here any ratio is read


def load_arrays(path: Path, names: Iterable[str]) -> dict[str, NDArray[Any]]:
    """Return the named arrays that an `.npz` contains. Object arrays, which are pickles, are not read.

    Raises ValueError if the archive is damaged or exceeds the limits, OSError if the file cannot be opened.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
        unpacked, packed = sum(member.file_size for member in members), sum(member.compress_size for member in members)
        if len(members) > MAX_MEMBERS or len({member.filename for member in members}) < len(members):
            raise ValueError(f"an archive of {len(members)} members, or of two of one name")
        if unpacked > MAX_BYTES or unpacked > max(UNLIMITED_BYTES, MAX_RATIO * packed):
            raise ValueError(f"{packed:,} bytes that unpack to {unpacked:,}: more than is read")
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in names if name in arrays}
    except OSError:
        raise
    except Exception as broken:  # zipfile and numpy raise any exception on a damaged file
        raise ValueError(f"{type(broken).__name__}: {broken}") from broken
