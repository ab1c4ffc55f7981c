"""A folder of the user's own images: what is in it, and what is measured of it. No torch.

The layout is PATH/CLASS/image.png, deeper folders inside a class included; without labels, images anywhere below PATH.
Names that begin with a dot are ignored. Files that are not images are ignored and counted. Links are refused, never
followed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import blake2b, sha256
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from sddit.data.class_names import warn_of_similar
from sddit.data.facts_cache import cached
from sddit.data.moments import PixelMoments
from sddit.errors import Problem, SdditError, error, expand_user, raise_all
from sddit.interfaces import DataFacts, Split
from sddit_standard.datasets.decode import CROP, SUFFIXES, decode

MAX_BYTES = 2**28  # of one file
MAX_PROBLEMS = 5  # shown at once
DARK_MEAN, DARK_STD = -0.9, 0.1  # of images in [-1, 1]: below both they are nearly black
READ_AHEAD = 256  # images decoded before their turn
MAX_HASHED_BYTES = 2**28  # of a folder that is read as a whole at each start: less than a second
MAX_SAMPLED = 1000  # files of a larger one


T = TypeVar("T")


class FolderSettings(Protocol):
    """The settings that decide which images are read and how; see `FolderParams`."""

    @property
    def path(self) -> str: ...
    @property
    def size(self) -> int: ...
    @property
    def channels(self) -> int: ...
    @property
    def bits(self) -> int | None: ...
    @property
    def holdout(self) -> float: ...
    @property
    def labels(self) -> bool: ...
    @property
    def full_hash(self) -> bool: ...


@dataclass(frozen=True, slots=True)
class ImageFile:
    """One image file."""

    name: str  # relative path with slashes
    label: int
    split: Split
    stamp: tuple[int, int]  # size in bytes, time of the last change


@dataclass(frozen=True, slots=True)
class Listing:
    """The images of a folder in the order of the bytes of their names, equal on every file system."""

    root: Path
    class_names: tuple[str, ...]
    images: tuple[ImageFile, ...]
    others: int  # files that are not images

    def of(self, split: Split) -> list[ImageFile]:
        return [image for image in self.images if image.split == split]


def folder_facts(settings: FolderSettings) -> DataFacts:
    """Return sizes and classes from the names; fingerprint, mean and std from the images, measured once and cached.

    Each call compares the files with those that were measured: all bytes, or of a large folder a sample.
    """
    listing = list_images(settings)
    warn_of_similar(listing.class_names)
    what = [str(listing.root), settings.size, settings.channels, settings.bits, settings.holdout, settings.labels]
    stamps = [(image.name, *image.stamp) for image in listing.images]
    checked = _files_to_hash(listing, settings)
    contents = [content.hex() for content in _in_threads(lambda image: sha256(_read(listing, image)).digest(), checked)]
    measured = cached(["folder", what, stamps, contents], lambda: _measure(listing, settings))
    _refuse_dark(measured["mean"], measured["std"], settings)
    train, test = len(listing.of("train")), len(listing.of("test"))
    ignored = f", {listing.others} other files ignored" if listing.others else ""
    return DataFacts(
        image=(settings.channels, settings.size, settings.size),
        class_names=listing.class_names,
        train_size=train,
        test_size=test,
        fingerprint=measured["fingerprint"],
        mean=tuple(measured["mean"]),
        std=tuple(measured["std"]),
        source=f"{listing.root}: {train} + {test} images{ignored}{_sampled_note(listing, checked)}",
        crop=CROP,
    )


def _files_to_hash(listing: Listing, settings: FolderSettings) -> Sequence[ImageFile]:
    """Return all images, or an even sample of them where all would take too long."""
    images = listing.images
    if settings.full_hash or sum(image.stamp[0] for image in images) <= MAX_HASHED_BYTES:
        return images
    return images[:: -(-len(images) // MAX_SAMPLED)]


def _sampled_note(listing: Listing, checked: Sequence[ImageFile]) -> str:
    if len(checked) == len(listing.images):
        return ""
    return f", changes looked for in a sample of {len(checked)} files (sampled; --full-hash reads all)"


def _refuse_dark(mean: Sequence[float], std: Sequence[float], settings: FolderSettings) -> None:
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


def list_images(settings: FolderSettings) -> Listing:
    """Walk the folder. Raises SD-D300, -D304, -D310, -D314, -D331 or -D332, several problems at once."""
    root = expand_user(settings.path, "dataset.path")
    try:
        got = "" if root.is_dir() else settings.path
    except OSError as failure:  # a name that is too long
        got = failure.strerror or str(failure)
    if got:
        what = "this folder of images does not exist"
        raise error("SD-D300", what, where="dataset.path", got=got, fix="correct the path")
    root = root.resolve()
    try:
        files = sorted(_files(root), key=lambda file: os.fsencode(file.name))
    except OSError as failure:
        raise error(
            "SD-D300",
            "a folder of images cannot be read",
            where=str(failure.filename),
            got=failure.strerror or str(failure),
            fix="fix its permissions",
        ) from None
    problems = [problem for file in files if (problem := _unusable(file))]
    images = [file for file in files if Path(file.name).suffix.lower() in SUFFIXES]
    class_names = tuple(sorted(_folders(root), key=os.fsencode)) if settings.labels else ()
    problems += _class_problems(root, class_names, images, settings)
    raise_all(problems[:MAX_PROBLEMS])
    number = {name: label for label, name in enumerate(class_names)}
    found = tuple(
        ImageFile(file.name, number.get(_class_of(file.name), 0), split_of(file.name, settings.holdout), file.stamp)
        for file in images
    )
    return Listing(root, class_names, found, others=len(files) - len(images))


def split_of(name: str, holdout: float) -> Split:
    """Return the split of an image, by a hash of its name: adding or removing images moves no other one."""
    share = int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), "big") / 2**64
    return "test" if share < holdout else "train"


def read_image(listing: Listing, image: ImageFile, settings: FolderSettings) -> tuple[NDArray[np.uint8], bytes]:
    """Return the decoded image [C, size, size] and the hash of its file. Raises SdditError as `decode` does."""
    data = _read(listing, image)
    levels = decode(
        data, name=str(listing.root / image.name), size=settings.size, channels=settings.channels, bits=settings.bits
    )
    return levels, sha256(data).digest()


def _read(listing: Listing, image: ImageFile) -> bytes:
    path = listing.root / image.name
    try:
        return path.read_bytes()
    except OSError as failure:
        raise error(
            "SD-D301",
            f"cannot read {image.name}",
            where=str(path),
            got=failure.strerror or str(failure),
            fix="fix its permissions or remove it",
        ) from None


@dataclass(frozen=True, slots=True)
class _File:
    name: str
    stamp: tuple[int, int]
    link: bool


def _files(root: Path, inside: str = "") -> Iterator[_File]:
    """Yield all files below `root`, and the links, which are not followed."""
    with os.scandir(root / inside) as entries:
        for entry in entries:
            name = f"{inside}{entry.name}"
            if entry.name.startswith("."):
                continue
            if entry.is_dir(follow_symlinks=False):
                yield from _files(root, f"{name}/")
            elif entry.is_symlink() or entry.is_file():
                status = entry.stat(follow_symlinks=False)
                yield _File(name, (status.st_size, status.st_mtime_ns), entry.is_symlink())


def _folders(root: Path) -> list[str]:
    with os.scandir(root) as entries:
        return [e.name for e in entries if e.is_dir(follow_symlinks=False) and not e.name.startswith(".")]


def _class_of(name: str) -> str:
    """Return the first folder of a relative path; empty for a file next to the class folders."""
    return name.partition("/")[0] if "/" in name else ""


def _unusable(file: _File) -> Problem | None:
    if file.link:
        fix = "copy what it points to; cp -rlL SOURCE TARGET makes hard links, which take no space"
        return Problem("SD-D331", "the data set contains a link", where=file.name, fix=fix)
    if not _is_utf8(file.name):
        return Problem("SD-D332", "a file name is not UTF-8", where=file.name, fix="rename it")
    if file.stamp[0] > MAX_BYTES and Path(file.name).suffix.lower() in SUFFIXES:
        return Problem("SD-D310", "an image file is too large", where=file.name, expect=f"at most {MAX_BYTES:,} bytes")
    return None


def _class_problems(
    root: Path, names: Iterable[str], images: list[_File], settings: FolderSettings
) -> Iterator[Problem]:
    """Return the problems of the folder's layout."""
    fix = "put images there or take it out"
    if not images:
        yield Problem("SD-D304", f"no images under {root}", where="dataset.path", expect=", ".join(sorted(SUFFIXES)))
        return
    if settings.labels:
        yield from (
            Problem("SD-D332", "the name of a class is not UTF-8", where=name, fix="rename the folder")
            for name in names
            if not _is_utf8(name)
        )
        if loose := [file.name for file in images if not _class_of(file.name)]:
            yield _loose_problem(loose, names)
    kept = [file for file in images if _is_utf8(file.name) and split_of(file.name, settings.holdout) == "train"]
    used, trained = ({_class_of(file.name) for file in group} for group in (images, kept))
    for name in names if settings.labels else ():
        if name not in used:
            yield Problem("SD-D304", f"class {name!r} has no image", where=f"{root}/{name}", fix=fix)
        elif name not in trained and _is_utf8(name):
            what = f"every image of class {name!r} is held out for the test split"
            yield Problem("SD-D304", what, where=f"{root}/{name}", fix="add images or lower dataset.holdout")
    if not kept:
        yield Problem("SD-D304", "no image is left to train on", where="dataset.holdout", fix="add images or lower it")


def _loose_problem(loose: Sequence[str], names: Iterable[str]) -> Problem:
    """Return one problem for all images that are next to the class folders, or that have none."""
    images = f"{len(loose)} images are" if len(loose) > 1 else "an image is"
    has_classes = any(True for _ in names)
    what = f"{images} next to the class folders" if has_classes else f"{images} in no class folder"
    move = "move them into one" if len(loose) > 1 else "move it into one"
    got = ", ".join(loose[:MAX_PROBLEMS]) + (", ..." if len(loose) > MAX_PROBLEMS else "")
    fix = f"{move}, or set dataset.labels=false"
    return Problem("SD-D314", what, where=loose[0], got=got if len(loose) > 1 else "", fix=fix)


def _is_utf8(name: str) -> bool:
    """Return whether a name from the file system was valid UTF-8: bytes that are not arrive as lone surrogates."""
    return not any("\ud800" <= c <= "\udfff" for c in name)


def _measure(listing: Listing, settings: FolderSettings) -> dict[str, Any]:
    """Fingerprint of the files and of how they are read; mean and std of the training split. All files are decoded."""
    read_as: tuple[Any, ...] = (settings.size, settings.channels, settings.labels, listing.class_names)
    if settings.bits is not None:  # a later key: without it, fingerprints are those of earlier versions
        read_as = (*read_as, settings.bits)
    digest = sha256(repr(read_as).encode())
    moments = PixelMoments(settings.channels)
    problems: list[Problem] = []
    for image, read in zip(listing.images, _read_all(listing, settings), strict=False):
        if isinstance(read, SdditError):
            problems += read.problems
            if len(problems) >= MAX_PROBLEMS:
                break
            continue
        levels, content = read
        digest.update(repr((image.name, image.label, image.split)).encode() + content)
        if image.split == "train":
            moments.add(levels[None])
    raise_all(problems)
    mean, std = moments.of_unit_range(255)
    return {"fingerprint": digest.hexdigest(), "mean": mean, "std": std}


def _read_all(listing: Listing, settings: FolderSettings) -> Iterator[tuple[NDArray[np.uint8], bytes] | SdditError]:
    """Yield every image in order, decoded, or the error that refuses it."""

    def attempt(image: ImageFile) -> tuple[NDArray[np.uint8], bytes] | SdditError:
        try:
            return read_image(listing, image, settings)
        except SdditError as refused:
            return refused

    return _in_threads(attempt, listing.images)


def _in_threads(function: Callable[[ImageFile], T], images: Iterable[ImageFile]) -> Iterator[T]:
    """Yield the function of every image in order, computed on a few threads and never far ahead."""
    waiting = iter(images)
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        while some := list(islice(waiting, READ_AHEAD)):
            yield from pool.map(function, some)
