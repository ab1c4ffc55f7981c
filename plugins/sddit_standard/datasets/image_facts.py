"""Measure the images of a source: fingerprint, mean and standard deviation, once, and compare them later. No torch."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from itertools import islice
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from sddit.data.class_names import warn_of_similar
from sddit.data.facts_cache import cached
from sddit.data.moments import PixelMoments
from sddit.errors import Problem, SdditError, error, raise_all
from sddit.interfaces import DataFacts
from sddit_standard.datasets.decode import CROP, decode
from sddit_standard.datasets.image_index import MAX_PROBLEMS
from sddit_standard.datasets.image_sources import ImageSource, SourceSettings, warn_of_one_class

DARK_MEAN, DARK_STD = -0.9, 0.1  # of images in [-1, 1]: below both they are nearly black
READ_AHEAD = 256  # images decoded before their turn
MAX_HASHED_BYTES = 2**28  # of images that are read as a whole at each start: less than a second
MAX_SAMPLED = 1000  # images of a larger source

T = TypeVar("T")


def image_facts(source: ImageSource, settings: SourceSettings) -> DataFacts:
    """Return sizes and classes from the names; fingerprint, mean and std from the images, measured once and cached.

    Each call compares the files with those that were measured: all bytes, or of many images a sample.
    """
    index, names = source.contents.index, source.contents.class_names
    warn_of_similar(names)
    warn_of_one_class(source.contents, str(source.location))
    is_test = index.is_test(settings.holdout)
    what = [str(source.location), settings.size, settings.channels, settings.bits, settings.holdout, settings.labels]
    checked = _positions_to_hash(source, settings)
    key = ["images", what, names, source.state, _hash_of_files(source, checked)]
    measured = cached(key, lambda: _measure(source, settings, is_test))
    _refuse_dark(measured["mean"], measured["std"], settings)
    test = int(is_test.sum())
    train = len(index) - test
    others = source.contents.others
    ignored = f", {others} other files ignored" if others else ""
    return DataFacts(
        image=(settings.channels, settings.size, settings.size),
        class_names=names,
        train_size=train,
        test_size=test,
        fingerprint=measured["fingerprint"],
        mean=tuple(measured["mean"]),
        std=tuple(measured["std"]),
        source=f"{source.location}: {train} + {test} images{ignored}{_sampled_note(source, checked)}",
        crop=CROP,
    )


def read_image(source: ImageSource, position: int, settings: SourceSettings) -> tuple[NDArray[np.uint8], bytes]:
    """Return the decoded image [C, size, size] and the hash of its file. Raises SdditError as `decode` does."""
    data = source.read(position)
    name = source.where(position)
    levels = decode(data, name=name, size=settings.size, channels=settings.channels, bits=settings.bits)
    return levels, sha256(data).digest()


def _positions_to_hash(source: ImageSource, settings: SourceSettings) -> range:
    """Return all positions, or an even sample of them where reading all images would take too long."""
    count = len(source.contents.index)
    is_small = int(source.contents.index.sizes.sum()) <= MAX_HASHED_BYTES
    return range(0, count, 1 if settings.full_hash or is_small else -(-count // MAX_SAMPLED))


def _hash_of_files(source: ImageSource, positions: Iterable[int]) -> str:
    """Return a hash of the bytes of image files."""
    digest = sha256()
    for content in _in_threads(lambda position: sha256(source.read(position)).digest(), positions):
        digest.update(content)
    return digest.hexdigest()


def _sampled_note(source: ImageSource, checked: range) -> str:
    if len(checked) == len(source.contents.index):
        return ""
    return f", changes looked for in a sample of {len(checked)} files (sampled; --full-hash reads all)"


def _refuse_dark(mean: list[float], std: list[float], settings: SourceSettings) -> None:
    """Raise SD-D315 if the images are nearly black, as files of few bits are in 8, unless `bits` is stated."""
    if settings.bits is None and max(mean) < DARK_MEAN and 0 < max(std) < DARK_STD:
        raise error(
            "SD-D315",
            "these images are nearly black",
            where=settings.path,
            got=f"mean level {(max(mean) + 1) * 127.5:.3g} of 255, standard deviation {max(std) * 127.5:.3g}",
            expect="images that use the range of their files",
            fix="dataset.bits = 4 if levels are 0 to 15, and so on; 8 if the images really are that dark",
        )


def _measure(source: ImageSource, settings: SourceSettings, is_test: NDArray[np.bool_]) -> dict[str, Any]:
    """Fingerprint of the files and of how they are read; mean and std of the training split. All files are decoded.

    Where an image is stored does not count: a folder and an archive of the same names and bytes have one fingerprint.
    """
    index = source.contents.index
    read_as: tuple[Any, ...] = (settings.size, settings.channels, settings.labels, source.contents.class_names)
    if settings.bits is not None:  # a later key: without it, fingerprints are those of earlier versions
        read_as = (*read_as, settings.bits)
    digest = sha256(repr(read_as).encode())
    moments = PixelMoments(settings.channels)
    problems: list[Problem] = []
    for position, read in enumerate(_read_all(source, settings)):
        if isinstance(read, SdditError):
            problems += read.problems
            if len(problems) >= MAX_PROBLEMS:
                break
            continue
        levels, content = read
        split = "test" if is_test[position] else "train"
        digest.update(repr((index.name(position), int(index.labels[position]), split)).encode() + content)
        if split == "train":
            moments.add(levels[None])
    raise_all(problems)
    mean, std = moments.of_unit_range(255)
    return {"fingerprint": digest.hexdigest(), "mean": mean, "std": std}


def _read_all(source: ImageSource, settings: SourceSettings) -> Iterator[tuple[NDArray[np.uint8], bytes] | SdditError]:
    """Yield every image in order, decoded, or the error that refuses it."""

    def attempt(position: int) -> tuple[NDArray[np.uint8], bytes] | SdditError:
        try:
            return read_image(source, position, settings)
        except SdditError as refused:
            return refused

    return _in_threads(attempt, range(len(source.contents.index)))


def _in_threads(function: Callable[[int], T], positions: Iterable[int]) -> Iterator[T]:
    """Yield the function of every position in order, computed on a few threads and never far ahead."""
    waiting = iter(positions)
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        while some := list(islice(waiting, READ_AHEAD)):
            yield from pool.map(function, some)
