"""Choose the images of each step by a function of seed and step, with no state to save. No torch."""

from __future__ import annotations

from collections.abc import Sequence
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


def balanced_batch_ids(
    seed: int, step: int, batch: int, members: Sequence[NDArray[np.int64]]
) -> tuple[list[int], list[int]]:
    """Return the images of one step and the epoch of each, as `batch_ids` does, with every class equally often.

    `members` are the images of each class. Position g = step * batch + slot of the run is in round g // classes, which
    visits every class once in an order of its own. A class shows its images in the order of its own epochs: all of them
    once before any a second time. So any number of steps shows two classes equally often, up to one image, and a run
    resumed at any step has the same order. Raises SD-D305 if there are fewer images than a batch.
    """
    if (size := sum(len(images) for images in members)) < batch:
        raise small_split_error(size, batch)
    samples = []
    for g in range(step * batch, (step + 1) * batch):
        visit, place = divmod(g, len(members))
        label = int(class_order(seed, "rounds", visit, len(members))[place])
        images = members[label]
        epoch, rest = divmod(visit, len(images))
        samples.append((int(images[class_order(seed, f"class {label}", epoch, len(images))[rest]]), epoch))
    return [image for image, _ in samples], [epoch for _, epoch in samples]


def class_members(labels: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Return the images of each class that has any, by their `labels` [n]."""
    return [np.flatnonzero(labels == label) for label in np.unique(labels)]


@lru_cache(maxsize=4096)
def class_order(seed: int, purpose: str, epoch: int, size: int) -> NDArray[np.int64]:
    """Return one order of balanced batches: of the classes in a round, or of the images of a class in an epoch."""
    return _sorted_words(f"{seed}/balanced/{purpose}/{epoch}", size)


@lru_cache(maxsize=4)
def permutation(seed: int, epoch: int, size: int) -> NDArray[np.int64]:
    """Return the order of one epoch, [size], by sorting words that are keyed by (seed, "order", epoch)."""
    return _sorted_words(f"{seed}/order/{epoch}", size)


def _sorted_words(key: str, size: int) -> NDArray[np.int64]:
    order: NDArray[np.int64] = np.argsort(keyed_words(key, size), kind="stable")
    order.flags.writeable = False  # all callers share it
    return order


def keyed_words(key: str, size: int) -> NDArray[np.uint64]:
    """Return the first raw words of Philox with this key, [size].

    NumPy guarantees those for all versions, unlike `Generator.permutation`.
    """
    digest = blake2b(key.encode(), digest_size=16).digest()
    return np.random.Philox(key=np.frombuffer(digest, dtype="<u8").astype(np.uint64)).random_raw(size)
