"""The order of the data: which images make the batch of a step. A function, with no state to save. No torch."""

from __future__ import annotations

from functools import lru_cache
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from sddit.interfaces.dataset import small_split_error


def batch_ids(seed: int, step: int, batch: int, size: int) -> tuple[list[int], list[int]]:
    """Return the images of one step and the epoch each belongs to: (ids [batch], epochs [batch]).

    Place g = step * batch + slot of the whole run shows image permutation(epoch)[g % size] in epoch g // size. So every
    image is seen once an epoch, a batch may reach across the border, and a run continues anywhere with the same order.
    Steps count from 0. Raises SD-D305 for a split smaller than a batch.
    """
    if size < batch:
        raise small_split_error(size, batch)
    places = [divmod(g, size) for g in range(step * batch, (step + 1) * batch)]
    ids = [int(permutation(seed, epoch, size)[rest]) for epoch, rest in places]
    return ids, [epoch for epoch, _ in places]


@lru_cache(maxsize=4)
def permutation(seed: int, epoch: int, size: int) -> NDArray[np.int64]:
    """Return the order of one epoch, [size].

    Made by sorting the raw words of Philox, keyed by (seed, "order", epoch): numpy promises those for all versions,
    which it does not for `Generator.permutation`.
    """
    key = blake2b(f"{seed}/order/{epoch}".encode(), digest_size=16).digest()
    words = np.random.Philox(key=np.frombuffer(key, dtype="<u8").astype(np.uint64)).random_raw(size)
    order: NDArray[np.int64] = np.argsort(words, kind="stable")
    order.flags.writeable = False  # it is shared by all who ask
    return order
