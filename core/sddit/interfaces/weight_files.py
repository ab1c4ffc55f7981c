"""Hash the weight files that settings name. Torch-free."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from hashlib import file_digest, sha256
from pathlib import Path
from typing import Annotated

from pydantic import Field

Sha256 = Annotated[str, Field(pattern="^([0-9a-f]{64})?$")]
"""A hash in hexadecimal, or empty: not set."""


def file_sha256(path: Path) -> str:
    """Return the sha256 of a file. It is read once, as long as neither its size nor its time of change moves."""
    state = path.stat()
    return _hash_of(path, state.st_size, state.st_mtime_ns)


def files_sha256(paths: Sequence[Path]) -> str:
    """Return the hash of weight files: of one, its sha256; of several, that of the lines `sha256sum` prints for them.

    The lines have the names without folders, in alphabetical order: `sha256sum *.pth | sha256sum` in their folder.
    """
    hashes = {path.name: file_sha256(path) for path in paths}
    if len(hashes) == 1:
        return next(iter(hashes.values()))
    lines = "".join(f"{digest}  {name}\n" for name, digest in sorted(hashes.items()))
    return sha256(lines.encode()).hexdigest()


@cache
def _hash_of(path: Path, size: int, changed: int) -> str:
    with path.open("rb") as file:
        return file_digest(file, "sha256").hexdigest()
