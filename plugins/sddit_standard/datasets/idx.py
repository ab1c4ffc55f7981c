"""The IDX files of the MNIST family: magic number, one big-endian size per dimension, then bytes. No torch."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sddit.errors import SdditError, error
from sddit.interfaces import Split
from sddit_standard.datasets.embedded import Table

PREFIX: dict[Split, str] = {"train": "train", "test": "t10k"}
NUM_CLASSES = 10
MAX_IMAGES = 200_000
IMAGES, LABELS = 0x0803, 0x0801  # magic numbers: unsigned bytes in three dimensions, and in one


def read_table(folder: Path, split: Split) -> Table:
    """Return one split of the published files.

    Raises SD-D300, -D302, -D303 or -D307 for files that are not what they should be.
    """
    images = _read_idx(folder / f"{PREFIX[split]}-images-idx3-ubyte.gz", IMAGES)
    labels_file = folder / f"{PREFIX[split]}-labels-idx1-ubyte.gz"
    labels = _read_idx(labels_file, LABELS)
    if images.shape[1:] != (28, 28) or len(images) != len(labels):
        raise error(
            "SD-D302",
            "these are not images and labels of Fashion-MNIST",
            where=str(folder),
            got=f"images {images.shape}, labels {labels.shape}",
            expect="images (n, 28, 28) and labels (n,)",
        )
    if labels.max() >= NUM_CLASSES:
        raise error(
            "SD-D307", f"label {labels.max()} but {NUM_CLASSES} classes", where=str(labels_file), expect="labels 0 to 9"
        )
    return Table(images[:, None], labels.astype(np.int64))


def _read_idx(path: Path, magic: int) -> NDArray[np.uint8]:
    """Return an array of the IDX format: magic number, one big-endian size per dimension, then bytes."""
    dimensions = magic & 0xFF
    try:
        with gzip.open(path) as file:
            found, *shape = struct.unpack(f">{1 + dimensions}I", file.read(4 * (1 + dimensions)))
            size = math.prod(shape)
            if found != magic or not 0 < shape[0] <= MAX_IMAGES or size > MAX_IMAGES * 28 * 28:
                raise _malformed(path, f"magic number {found:#x}, sizes {shape}", f"magic number {magic:#x}")
            body = file.read(size + 1)  # never more than the header promises
    except gzip.BadGzipFile as broken:
        raise error("SD-D303", "a file is damaged", where=str(path), got=str(broken), fix="fetch it again") from None
    except (EOFError, struct.error, zlib.error) as broken:
        raise _malformed(path, f"{type(broken).__name__}: {broken}", "a whole gzip file") from None
    except OSError as broken:
        raise error(
            "SD-D300",
            "a file cannot be read",
            where=str(path),
            got=broken.strerror or str(broken),
            fix="fix its permissions, or fetch it again",
        ) from None
    if len(body) != size:
        raise _malformed(
            path, f"{len(body)} bytes or more" if len(body) > size else f"{len(body)} bytes", f"{size} bytes"
        )
    return np.frombuffer(bytearray(body), dtype=np.uint8).reshape(shape)


def _malformed(path: Path, got: str, expect: str) -> SdditError:
    return error(
        "SD-D302", "a file is cut short or no IDX file", where=str(path), got=got, expect=expect, fix="fetch it again"
    )
