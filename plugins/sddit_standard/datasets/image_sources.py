"""Define where the images of a data set come from: a folder, an archive, or a saved data set. No torch."""

from __future__ import annotations

import json
import os
import stat
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from io import BytesIO
from itertools import islice
from pathlib import Path
from posixpath import splitext
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.lib.format import read_array_header_1_0, read_array_header_2_0, read_magic
from numpy.typing import NDArray

from sddit.data.class_names import read_names
from sddit.data.declared import numbers_as_names
from sddit.data.facts_cache import cached_arrays
from sddit.errors import Problem, SdditError, error, expand_user
from sddit.storage.atomic import open_file
from sddit_standard.datasets.decode import SUFFIXES
from sddit_standard.datasets.image_index import MAX_PROBLEMS, ImageIndex

FORMAT = 2  # of cached contents; another one where what is listed, refused or sorted changes
MAX_BYTES = 2**28  # of one image file
MAX_CLASSES = 10**6
MAX_ENTRIES_SEEN = 1000  # of a folder, to see what kind of source it is
MAX_RATIO = 200  # unpacked to packed bytes of one entry, above UNLIMITED_BYTES; photographs reach 2
UNLIMITED_BYTES = 2**24
MAX_NPY_HEADER = 2**14
SYSTEM_FOLDERS = frozenset(
    ("__MACOSX", "@eaDir", "#recycle", "$RECYCLE.BIN", "System Volume Information", "lost+found", "__pycache__")
)
"""Folders that systems add to those of their users: attributes of files, thumbnails, deleted files."""
RUNS_CODE = frozenset(
    (".pkl", ".pickle", ".pyd", ".pyc", ".py", ".pth", ".pt", ".ckpt", ".joblib", ".dill", ".so", ".dll", ".exe")
)
"""Suffixes of files that loaders of other programs unpickle or execute."""


class SourceSettings(Protocol):
    """The settings that decide which images are read and how; see `ImageFilesParams`."""

    kind: ClassVar[str]

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


class NamedSettings(SourceSettings, Protocol):
    """The settings of a source whose labels are numbers."""

    @property
    def class_names(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Contents:
    """The images and classes of a source, found without decoding an image."""

    index: ImageIndex
    class_names: tuple[str, ...] = ()
    others: int = 0  # files that are not images


class ImageSource(Protocol):
    """Images by position. Threads and processes may read at once: nothing is kept open between two reads."""

    location: Path  # for messages
    contents: Contents
    state: Any  # JSON that changes when a file of the source does, as far as sizes and times show it

    def read(self, position: int) -> bytes:
        """Return the bytes of an image file. Raises SdditError if they cannot be read, or are no longer the same."""

    def where(self, position: int) -> str:
        """Return where an image is, for messages."""


@dataclass(frozen=True, slots=True)
class SourceFile:
    """An archive as it was when its index was made."""

    path: Path
    stamp: tuple[int, int]  # size in bytes, time of the last change

    @classmethod
    def at(cls, path: Path) -> SourceFile:
        """Return the file with its present size and time. Raises SD-D300 for anything but a regular file."""
        descriptor = opened(path)
        try:
            status = os.fstat(descriptor)
        finally:
            os.close(descriptor)
        return cls(path, (status.st_size, status.st_mtime_ns))

    def read(self, offset: int, count: int, name: str) -> bytes:
        """Return bytes of the file. Raises SD-D324 if it was written to since its index was made."""
        descriptor = opened(self.path)
        try:
            status = os.fstat(descriptor)
            if (status.st_size, status.st_mtime_ns) != self.stamp:
                raise changed(name, self.path)
            inside = min(count, max(0, status.st_size - offset))  # a false count must not reserve memory
            return b"".join(_pieces(descriptor, offset, inside))
        except OSError as failure:
            raise unreadable(name, self.path, failure) from None
        finally:
            os.close(descriptor)


def _pieces(descriptor: int, offset: int, count: int) -> Iterator[bytes]:
    """Yield `count` bytes of a file, or fewer at its end."""
    while count > 0 and (piece := os.pread(descriptor, count, offset)):
        yield piece
        offset, count = offset + len(piece), count - len(piece)


def opened(path: Path) -> int:
    """Open a regular file for reading. Raises SD-D300."""
    try:
        return open_file(path)
    except OSError as failure:
        raise missing("this file of images cannot be read", str(path), failure.strerror or str(failure)) from None


def missing(what: str, where: str, got: str) -> SdditError:
    """Return the error of data that is not there (SD-D300)."""
    return error("SD-D300", what, where=where, got=got, fix="correct the path, or fix its permissions")


def changed(name: str, path: Path) -> SdditError:
    """Return the error of a file that was written to while it was used (SD-D324)."""
    what = f"{path.name} was changed after its images were listed"
    return error("SD-D324", what, where=str(path), got=f"another size or time when {name} was read")


def unreadable(name: str, path: Path, failure: OSError) -> SdditError:
    """Return the error of an image whose bytes cannot be read (SD-D301)."""
    got, fix = failure.strerror or str(failure), "fix its permissions or remove it"
    return error("SD-D301", f"cannot read {name}", where=str(path), got=got, fix=fix)


def existing(path: str, expect: str, *, folder: bool) -> Path:
    """Return the resolved path of a source that exists, and is a folder or a file as asked. Raises SD-D300."""
    root = expand_user(path, "dataset.path")
    what, got = f"this {expect} does not exist", path
    try:
        if stat.S_ISDIR(root.stat().st_mode) == folder:
            return root.resolve()
        article = "an" if expect[0] in "aeiou" else "a"
        what, got = f"dataset.path is not {article} {expect}", f"{path} is a {'file' if folder else 'folder'}"
    except FileNotFoundError:
        pass
    except OSError as failure:  # a name that is too long, or permissions
        got = failure.strerror or str(failure)
    raise error("SD-D300", what, where="dataset.path", got=got, fix=other_source(root) or "correct the path")


def source_kind(path: Path) -> str:
    """Return the name of the data set that reads what a path looks like; empty if there is nothing, or no such file."""
    with suppress(OSError):
        inside = [entry.name for entry in islice(path.iterdir(), MAX_ENTRIES_SEEN)] if path.is_dir() else []
        names = [path.name, *inside] if path.exists() else []
        suits = {
            "zip": any(name.endswith(".zip") for name in names),
            "webdataset": any(name.endswith(".tar") for name in names),
            "hf": "state.json" in names or "dataset_dict.json" in names,
            "folder": path.is_dir(),
        }
        return next((kind for kind, suited in suits.items() if suited), "")
    return ""


def other_source(path: Path, chosen: str = "") -> str:
    """Return the fix that names the data set that reads a path; empty for none, or if it is the chosen one."""
    kind = source_kind(path)
    if kind in ("", chosen):
        return ""
    is_inside = kind == "zip" and path.is_dir()
    return f'dataset.name = "{kind}" reads this' + (", with dataset.path = the .zip file" * is_inside)


def is_image(name: str) -> bool:
    """Return whether a name has the suffix of an image file."""
    return splitext(name)[1].lower() in SUFFIXES


def is_utf8(name: str) -> bool:
    """Return whether a name was valid UTF-8: bytes that are not arrive as lone surrogates."""
    return not any("\ud800" <= c <= "\udfff" for c in name)


def is_hidden(name: str) -> bool:
    """Return whether an entry is passed over: a part of its name begins with a dot, or is a folder of the system."""
    return any(part in SYSTEM_FOLDERS or (part.startswith(".") and part not in (".", "..")) for part in name.split("/"))


def class_of(name: str) -> str:
    """Return the first folder of a relative path; empty for a file that is in no folder."""
    return name.partition("/")[0] if "/" in name else ""


def too_large(name: str, where: str, size: int) -> Problem | None:
    """Return the problem of an image file that is too large to be read safely."""
    if size <= MAX_BYTES:
        return None
    expect = f"at most {MAX_BYTES:,} bytes"
    return Problem("SD-D310", "an image file is too large", where=where, got=f"{name}: {size:,} bytes", expect=expect)


def refused_entry(name: str, where: str) -> Problem | None:
    """Return the problem of an entry that leaves its folder, can hold code or is not UTF-8: SD-D312, -D322, -D332."""
    if not is_utf8(name):
        return Problem("SD-D332", "the name of an entry is not UTF-8", where=where, got=name, fix="rename it")
    if name.startswith("/") or "\\" in name or "\0" in name or ".." in name.split("/"):
        expect = "relative names inside the archive, with slashes"
        return Problem("SD-D312", "the name of an entry leads out of the archive", where=where, got=name, expect=expect)
    if splitext(name)[1].lower() in RUNS_CODE:
        return code_entry(name, where, "a kind of file that can run code when it is loaded")
    return None


def code_entry(name: str, where: str, got: str) -> Problem:
    """Return the problem of an entry that can hold code (SD-D322)."""
    what = f"the archive holds {name}, which can run code when it is loaded"
    return Problem("SD-D322", what, where=where, got=got, expect="images and labels only")


def object_array_problems(header: bytes, name: str, where: str) -> Iterator[Problem]:
    """Yield the problem of an .npy file of Python objects, which is a pickle. `header`: its first bytes."""
    file = BytesIO(header)
    try:
        read_header = read_array_header_1_0 if read_magic(file) == (1, 0) else read_array_header_2_0
        _, _, dtype = read_header(file)
    except ValueError:
        yield code_entry(name, where, "no array of numbers, so perhaps a pickle")
        return
    if dtype.hasobject:
        yield code_entry(name, where, "an array of Python objects")


def class_problems(
    contents: Contents, settings: SourceSettings, where: str, class_where: str = ""
) -> Iterator[Problem]:
    """Yield what is wrong with the number of images, of each class and of the training split."""
    index, names = contents.index, contents.class_names
    if not len(index):
        expect, fix = ", ".join(sorted(SUFFIXES)), other_source(Path(where), settings.kind)
        yield Problem("SD-D304", f"no images under {where}", where="dataset.path", expect=expect, fix=fix)
        return
    is_train = ~index.is_test(settings.holdout)
    all_images = np.bincount(index.labels, minlength=len(names))
    trained = np.bincount(index.labels[is_train], minlength=len(names))
    for label, name in enumerate(names):
        place = f"{class_where}{name}" if class_where else where
        if not all_images[label]:
            fix = "put images there or take it out" if class_where else "add images, or number the classes without gaps"
            yield Problem("SD-D304", f"class {name!r} has no image", place, fix=fix)
        elif not trained[label]:
            what = f"every image of class {name!r} is held out for the test split"
            yield Problem("SD-D304", what, place, fix="add images or lower dataset.holdout")
    if not is_train.any():
        yield Problem("SD-D304", "no image is left to train on", "dataset.holdout", fix="add images or lower it")


def warn_of_one_class(contents: Contents, where: str) -> None:
    """Warn if the only class is a folder of folders: those inside it are probably meant as the classes."""
    if len(contents.class_names) != 1 or class_of(contents.index.name(0)) != contents.class_names[0]:
        return
    inside = {class_of(name.decode().partition("/")[2]) for name in contents.index.names()}
    if len(inside) > 1 and "" not in inside:
        shown = ", ".join(sorted(inside)[:MAX_PROBLEMS]) + (", ..." if len(inside) > MAX_PROBLEMS else "")
        what = f"all images of {where} are of one class, {contents.class_names[0]!r}, which holds the folders {shown}"
        warnings.warn(f"{what}: if these are the classes, they must be at the top of dataset.path", stacklevel=3)


def loose_problem(loose: Sequence[str], has_classes: bool) -> Problem:
    """Return one problem for all images that are next to the class folders, or that have none."""
    count = len(loose)
    images = f"{count} images are" if count > 1 else "an image is"
    what = f"{images} next to the class folders" if has_classes else f"{images} in no class folder"
    move = "move them into one" if count > 1 else "move it into one"
    got = ", ".join(loose[:MAX_PROBLEMS]) + (", ..." if count > MAX_PROBLEMS else "")
    fix = f"{move}, or set dataset.labels=false"
    return Problem("SD-D314", what, where=loose[0], got=got if count > 1 else "", fix=fix)


def names_of_labels(labels: NDArray[np.int64], names: Sequence[str], where: str) -> tuple[str, ...]:
    """Return a name for each class number: those that are given, or the numbers. Raises SD-D307."""
    highest = int(labels.max(initial=-1))
    if names and highest >= len(names):
        got, expect = f"label {highest}", f"labels below {len(names)}, one for each class name"
        raise error("SD-D307", "a label is not the number of a class", where=where, got=got, expect=expect)
    if highest >= MAX_CLASSES:
        expect = f"numbers below {MAX_CLASSES:,}"
        raise error("SD-D307", "a label is too large", where=where, got=f"label {highest}", expect=expect)
    return tuple(names) or numbers_as_names(highest + 1)


def no_label(name: str, where: str, got: str, expect: str) -> Problem:
    """Return the problem of an image without a usable label (SD-D321)."""
    fix = "add the label, or set dataset.labels=false"
    return Problem("SD-D321", f"{name} has no usable label", where=where, got=got, expect=expect, fix=fix)


def stated_names(path: str) -> tuple[str, ...]:
    """Return the class names of a text file, by class number; none without a path. Raises SD-D316."""
    return tuple(read_names(Path(path))) if path else ()


def cached_contents(key: Any, compute: Callable[[], Contents]) -> Contents:
    """Return `compute()`, or its earlier result for this `key`, any JSON."""

    def arrays() -> dict[str, NDArray[Any]]:
        made = compute()
        rest = json.dumps([made.class_names, made.others]).encode()
        return {**made.index.arrays(), "rest": np.frombuffer(rest, np.uint8)}

    found = cached_arrays(["image index", FORMAT, key], arrays)
    class_names, others = json.loads(found.pop("rest").tobytes())
    return Contents(ImageIndex(**found), tuple(class_names), others)
