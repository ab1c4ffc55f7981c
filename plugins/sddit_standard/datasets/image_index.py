"""Keep the list of a data set's images in compact arrays: 1.3 million images take about 100 MB. No torch."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import dataclass, replace
from hashlib import blake2b, sha256
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sddit.errors import Problem
from sddit.interfaces import Split

MAX_PROBLEMS = 5  # shown at once


def hash_of(name: bytes) -> int:
    """Return the hash of a name that decides its split, 64 bits."""
    return int.from_bytes(blake2b(name, digest_size=8).digest(), "big")


def split_of(name: str, holdout: float) -> Split:
    """Return the split of an image, by a hash of its name: adding or removing images moves no other one."""
    return "test" if hash_of(name.encode()) / 2**64 < holdout else "train"


@dataclass(frozen=True, slots=True)
class ImageIndex:
    """The n images of a data set in the order of the bytes of their names, equal on every file system."""

    text: NDArray[np.uint8]  # all names, UTF-8, joined
    ends: NDArray[np.int64]  # [n] where each name ends in `text`
    hashes: NDArray[np.uint64]  # [n] of the names, see `hash_of`
    labels: NDArray[np.int64]  # [n]
    sizes: NDArray[np.int64]  # [n] bytes of each image file
    places: NDArray[np.int64]  # [n, k] where its source finds it; the source defines the k columns

    def __len__(self) -> int:
        return len(self.ends)

    def name(self, position: int) -> str:
        """Return the name of an image: a relative path with slashes."""
        return self.name_bytes(position).decode()

    def name_bytes(self, position: int) -> bytes:
        """Return the name of an image in UTF-8."""
        start = int(self.ends[position - 1]) if position else 0
        return self.text[start : self.ends[position]].tobytes()

    def names(self) -> Iterator[bytes]:
        """Yield all names in order."""
        text, start = self.text.data, 0
        for end in self.ends.data:
            yield bytes(text[start:end])
            start = end

    def is_test(self, holdout: float) -> NDArray[np.bool_]:
        """Return for each image whether it belongs to the test split, as `split_of` does."""
        found: NDArray[np.bool_] = self.hashes.astype(np.float64) / 2**64 < holdout
        return found

    def positions(self, split: Split, holdout: float) -> NDArray[np.int64]:
        """Return the positions of the images of a split."""
        return np.flatnonzero(self.is_test(holdout) == (split == "test"))

    def find(self, name: bytes, order: NDArray[np.int64]) -> int | None:
        """Return the position of a name, or None. `order` is `numpy.argsort(index.hashes)`."""
        wanted = np.uint64(hash_of(name))
        at = int(np.searchsorted(self.hashes, wanted, sorter=order))
        while at < len(order) and self.hashes[order[at]] == wanted:
            if self.name_bytes(position := int(order[at])) == name:
                return position
            at += 1
        return None

    def repeated_name(self) -> str | None:
        """Return a name that two images have, or None."""
        return next((one.decode() for one, following in pairwise(self.names()) if one == following), None)

    def labelled(self, labels: NDArray[np.int64]) -> ImageIndex:
        """Return the same images with other labels."""
        return replace(self, labels=labels)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return the arrays by their names."""
        return {name: getattr(self, name) for name in self.__slots__}

    def digest(self) -> str:
        """Return a hash of everything in the index."""
        digest = sha256()
        for values in self.arrays().values():
            digest.update(repr(values.shape).encode())
            digest.update(np.ascontiguousarray(values).data)
        return digest.hexdigest()


class IndexBuilder:
    """Collect images in any order, with the problems found on the way and the number of files that are not images."""

    def __init__(self, columns: int) -> None:
        self.columns = columns  # of `ImageIndex.places`
        self.text = bytearray()
        self.ends, self.sizes, self.labels = array("q"), array("q"), array("q")
        self.places, self.hashes = array("q"), array("Q")
        self.others = 0
        self.problems: list[Problem] = []

    def __len__(self) -> int:
        return len(self.ends)

    def add(self, name: bytes, size: int, *place: int, label: int = 0) -> None:
        """Add an image."""
        self.text += name
        self.ends.append(len(self.text))
        self.hashes.append(hash_of(name))
        self.labels.append(label)
        self.sizes.append(size)
        self.places.extend(place)

    def refuse(self, code: str, what: str, **fields: str) -> None:
        """Keep a problem; of many, the first ones."""
        if len(self.problems) < MAX_PROBLEMS:
            self.problems.append(Problem(code, what, **fields))

    def extend(self, other: IndexBuilder) -> None:
        """Add all that another builder collected."""
        start = len(self.text)
        self.text += other.text
        self.ends.frombytes((np.frombuffer(other.ends, np.int64) + start).tobytes())
        for name in ("hashes", "labels", "sizes", "places"):
            getattr(self, name).extend(getattr(other, name))
        self.others += other.others
        self.problems += other.problems[: max(0, MAX_PROBLEMS - len(self.problems))]

    def sort(self) -> None:
        """Sort the images by the bytes of their names."""
        index = self._view()
        if all(one <= next_one for one, next_one in pairwise(index.names())):
            return
        names = np.empty(len(index), dtype=object)
        names[:] = list(index.names())
        order: NDArray[np.int64] = names.argsort(kind="stable")
        del names
        text, ends = bytearray(), array("q")
        for position in order.data:
            text += index.name_bytes(position)
            ends.append(len(text))
        for name in ("hashes", "labels", "sizes", "places"):
            old: array[int] = getattr(self, name)
            setattr(self, name, array(old.typecode, getattr(index, name)[order].tobytes()))
        self.text, self.ends = text, ends

    def build(self) -> ImageIndex:
        """Return the index, which shares the memory of this builder: nothing can be added afterwards."""
        self.sort()
        return self._view()

    def _view(self) -> ImageIndex:
        return ImageIndex(
            text=_shared(self.text, np.uint8),
            ends=_shared(self.ends, np.int64),
            hashes=_shared(self.hashes, np.uint64),
            labels=_shared(self.labels, np.int64),
            sizes=_shared(self.sizes, np.int64),
            places=_shared(self.places, np.int64).reshape(len(self), self.columns),
        )


def _shared(values: bytearray | array[int], dtype: type) -> NDArray[Any]:
    """Return the values as an array that shares their memory."""
    return np.frombuffer(values, dtype) if values else np.empty(0, dtype)
