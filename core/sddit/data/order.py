"""Choose the images of each step by a function of seed and step, with no state to save. No torch."""

from __future__ import annotations

from functools import lru_cache
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from sddit.interfaces.dataset import small_split_error


def batch_ids(seed: int, step: int, batch: int, size: int) -> tuple[list[int], list[int]]:
    """Return the images of one step and the epoch of each: (ids [batch], epochs [batch]).

    Position g = step * batch + slot of the run is image permutation(epoch)[g % size] of epoch g // size. So every image
    is seen once per epoch, a batch may span two epochs, and a run resumed at any step has the same order. Steps count
    from 0. Raises SD-D305 if the split is smaller than a batch.
    """
    if size < batch:
        raise small_split_error(size, batch)
    positions = [divmod(g, size) for g in range(step * batch, (step + 1) * batch)]
    ids = [int(permutation(seed, epoch, size)[rest]) for epoch, rest in positions]
    return ids, [epoch for epoch, _ in positions]


@lru_cache(maxsize=4)
def permutation(seed: int, epoch: int, size: int) -> NDArray[np.int64]:
    """Return the order of one epoch, [size], by sorting words that are keyed by (seed, "order", epoch)."""
    order: NDArray[np.int64] = np.argsort(keyed_words(f"{seed}/order/{epoch}", size), kind="stable")
    order.flags.writeable = False  # all callers share it
    return order


def keyed_words(key: str, size: int) -> NDArray[np.uint64]:
    """Return the first raw words of Philox with this key, [size].

    NumPy guarantees those for all versions, unlike `Generator.permutation`.
    """
    digest = blake2b(key.encode(), digest_size=16).digest()
    return np.random.Philox(key=np.frombuffer(digest, dtype="<u8").astype(np.uint64)).random_raw(size)
