"""Read images from WebDataset's .tar shards, at any position. No torch.

A sample is a group of entries with one KEY, the name up to the first dot of its last part: KEY.jpg is the image,
KEY.cls or KEY.json its label. Shards are listed once, in several processes if that takes long, and images are then read
by their offset. Nothing is extracted, and only images and labels are read.
"""

from __future__ import annotations

import io
import json
import os
import tarfile
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any

import numpy as np

from sddit.errors import Problem, SdditError, error, raise_all
from sddit.storage.atomic import open_file
from sddit_standard.datasets.decode import SUFFIXES
from sddit_standard.datasets.image_index import MAX_PROBLEMS, IndexBuilder, hash_of
from sddit_standard.datasets.image_sources import (
    MAX_NPY_HEADER,
    Contents,
    NamedSettings,
    SourceFile,
    cached_contents,
    class_problems,
    existing,
    is_hidden,
    missing,
    names_of_labels,
    no_label,
    object_array_problems,
    other_source,
    refused_entry,
    stated_names,
    too_large,
)
from sddit_standard.datasets.parallel_scan import scan_parts

MAX_LABEL_BYTES = 2**16  # of KEY.cls or KEY.json
MAX_ENTRIES = 2**22  # of one shard
MAX_HEADER_BYTES = 2**20  # of one entry
MAX_PADDING = 2**20  # zeros after the end of an archive; tar pads to 10 KiB
COMPRESSED = (".tar.gz", ".tgz", ".tar.zst", ".tar.xz", ".tar.bz2")
LABEL_SUFFIXES = ("cls", "json")
LABEL_KEYS = ("label", "cls")  # of KEY.json
COLUMNS = 2  # of `ImageIndex.places`: number of the shard, offset of the image


class WebdatasetSource:
    """The images of .tar shards, listed once and cached.

    Raises SD-D300, -D304, -D307, -D310, -D312, -D313, -D321, -D322 or -D324.
    """

    def __init__(self, settings: NamedSettings) -> None:
        paths = find_shards(settings.path)
        self.location = paths[0].parent if len(paths) > 1 else paths[0]
        self._shards = [SourceFile.at(path) for path in paths]
        names = stated_names(settings.class_names)
        stamps = [[str(shard.path), *shard.stamp] for shard in self._shards]
        self.state = [stamps, settings.labels, names]
        self.contents = cached_contents(["webdataset", *self.state], lambda: self._list(settings, stamps, names))
        raise_all(list(class_problems(self.contents, settings, str(self.location)))[:MAX_PROBLEMS])

    def read(self, position: int) -> bytes:
        index = self.contents.index
        shard, offset = map(int, index.places[position])
        return self._shards[shard].read(offset, int(index.sizes[position]), index.name(position))

    def where(self, position: int) -> str:
        index = self.contents.index
        return f"{self._shards[int(index.places[position, 0])].path}: {index.name(position).partition('/')[2]}"

    def _list(self, settings: NamedSettings, stamps: list[Any], names: tuple[str, ...]) -> Contents:
        parts = [[number, *stamp, settings.labels] for number, stamp in enumerate(stamps)]
        found = scan_parts(f"{__name__}:scan", parts, COLUMNS)
        raise_all(found.problems)
        index = found.build()
        if not settings.labels:
            return Contents(index, (), found.others)
        return Contents(index, names_of_labels(index.labels, names, str(self.location)), found.others)


def find_shards(path: str) -> list[Path]:
    """Return the .tar files of a folder or a pattern, or the one file, sorted by name. Raises SD-D300 or SD-D313."""
    pattern = Path(path)
    if any(mark in pattern.name for mark in "*?[") and not pattern.exists():
        folder, wanted = existing(str(pattern.parent), "folder of .tar shards", folder=True), pattern.name
    elif pattern.is_dir():
        folder, wanted = existing(path, "folder of .tar shards", folder=True), "*.tar"
    else:
        return [_plain(existing(path, "folder or file of .tar shards", folder=False))]
    try:
        found = sorted((file for file in folder.glob(wanted) if not is_hidden(file.name)), key=os.fsencode)
        compressed = [file for file in folder.iterdir() if file.name.endswith(COMPRESSED)]
    except (OSError, ValueError) as failure:
        raise missing("a folder of .tar shards cannot be read", str(folder), str(failure)) from None
    if not found and compressed:
        raise _not_plain(compressed[0])
    if not found:
        expect, fix = "files such as shard-000000.tar", other_source(folder, chosen="webdataset")
        raise error("SD-D304", "no .tar shards here", where="dataset.path", got=path, expect=expect, fix=fix)
    return [_plain(file) for file in found]


def _plain(path: Path) -> Path:
    """Return the path of a shard if its name is that of a plain .tar file. Raises SD-D313."""
    if not path.name.endswith(".tar"):
        raise _not_plain(path)
    return path


def _not_plain(path: Path) -> SdditError:
    """Return the error of a file that is compressed as a whole, or of another kind (SD-D313)."""
    what, fix = (
        f"{path.name} is not a .tar file",
        other_source(path, chosen="webdataset") or "rename it, if it is a .tar file",
    )
    if path.name.endswith(COMPRESSED):
        what = f"{path.name} is compressed as a whole, so that no image can be read alone"
        fix = "unpack it to a plain .tar file, such as by gunzip"
    return error("SD-D313", what, where=str(path), expect="*.tar", fix=fix)


def scan(part: tuple[int, str, int, int, bool]) -> IndexBuilder:
    """List the images of one shard and their labels. Raises SD-D313 or SD-D324."""
    number, path, size, changed_at, labelled = part
    return Shard(SourceFile(Path(path), (size, changed_at)), number, labelled).listed()


class HeaderReader(io.BufferedReader):
    """Read headers of a .tar file, and refuse a false length, which would read the whole file into memory."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or not 0 <= size <= MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {size} bytes")
        return super().read(size)


@dataclass(slots=True)
class Sample:
    """What is known of a sample while its shard is listed."""

    image: tuple[str, int, int] | None = None  # name, size, offset
    label: int | None = None


class Shard:
    """One .tar file while it is listed. Samples are kept until the next one begins: that of an image and its label."""

    def __init__(self, file: SourceFile, number: int, labelled: bool) -> None:
        self.where, self._prefix = str(file.path), file.path.stem
        self._file, self._number, self._labelled = file, number, labelled
        self._samples: dict[str, Sample] = {}
        self._found = IndexBuilder(COLUMNS)
        self._keys = array("Q")  # hashes of those that were added

    def listed(self) -> IndexBuilder:
        """Return the images of the shard, and what is wrong with its entries."""
        last = ""
        for name, entry in self._named_entries():
            key, suffix = _key_of(name)
            if key != last:
                self._add(last)
                last = key
            self._found.problems += self._problems(name, entry, key, suffix)
            if len(self._found.problems) >= MAX_PROBLEMS:
                return self._found
        self._add(last)
        self._found.problems += self._incomplete()
        if len(np.unique(np.array(self._keys, np.uint64))) < len(self._keys):
            got, fix = f"{len(self._keys):,} samples", "write the shard again with a key for each sample"
            self._found.refuse("SD-D312", "two samples of a shard have one key", where=self.where, got=got, fix=fix)
        return self._found

    def _named_entries(self) -> Iterator[tuple[str, tarfile.TarInfo]]:
        """Yield files, links and devices with their names."""
        for entry in self._entries():
            name = entry.name
            while name.startswith("./"):
                name = name[2:]
            if not entry.isdir() and not is_hidden(name):
                yield name, entry

    def _entries(self) -> Iterator[tarfile.TarInfo]:
        """Yield the entries of the file. Raises SD-D313 for a file that is cut short or damaged."""
        try:
            raw = HeaderReader(io.FileIO(open_file(self._file.path)))
            with raw, tarfile.open(fileobj=raw, mode="r:") as archive:
                for _ in range(MAX_ENTRIES):
                    entry = archive.next()
                    if entry is None:
                        self._check_end(raw, archive.offset)
                        return
                    if entry.size < 0:  # tarfile would then read the same entries again and again
                        raise self._damaged(f"{entry.name} has {entry.size:,} bytes")
                    if entry.isreg() and not entry.issparse() and entry.offset_data + entry.size > self._file.stamp[0]:
                        raise self._damaged(f"{entry.name} has {entry.size:,} bytes, and the file ends before")
                    vars(archive)["members"].clear()  # tarfile keeps each, some 1,000 bytes
                    yield entry
                raise self._damaged(f"more than {MAX_ENTRIES:,} entries")
        except OSError as failure:
            raise missing("a .tar shard cannot be read", self.where, failure.strerror or str(failure)) from None
        except (tarfile.TarError, EOFError, ValueError) as broken:
            raise self._damaged(str(broken)) from None

    def _check_end(self, raw: IO[bytes], at: int) -> None:
        """Refuse an archive without its end, and one with something behind it, which tar does not show."""
        rest = self._file.stamp[0] - at
        raw.seek(at)
        if rest < tarfile.BLOCKSIZE:
            raise self._damaged("it ends without the empty blocks that end an archive")
        if rest > MAX_PADDING or raw.read(rest).strip(b"\0"):
            raise self._damaged(f"no entry and no end of an archive at byte {at:,}, and {rest:,} bytes follow")

    def _damaged(self, got: str) -> SdditError:
        what, fix = (
            f"{self._file.path.name} is damaged or cut short",
            "copy it again; join archives with tar -A, not cat",
        )
        return error("SD-D313", what, where=self.where, got=got, expect="a whole .tar archive", fix=fix)

    def _add(self, key: str) -> None:
        """Add a sample that has all it needs."""
        sample = self._samples.get(key, Sample())
        if sample.image is not None and (sample.label is not None or not self._labelled):
            name, size, offset = sample.image
            full = f"{self._prefix}/{name}".encode()
            self._found.add(full, size, self._number, offset, label=sample.label or 0)
            self._keys.append(hash_of(key.encode()))
            del self._samples[key]

    def _problems(self, name: str, entry: tarfile.TarInfo, key: str, suffix: str) -> Iterator[Problem]:
        """Keep an image or a label, and yield the problem of an entry that is refused."""
        if refused := refused_entry(name, self.where):
            yield refused
        elif not entry.isreg() or entry.issparse():
            got, fix = f"{name}: a link, a device or a sparse file", "put the file itself in"
            yield Problem("SD-D312", "an entry is not a plain file", self.where, got=got, fix=fix)
        elif f".{suffix}" in SUFFIXES:
            yield from self._image_problems(name, entry, key)
        elif suffix in LABEL_SUFFIXES and self._labelled:
            yield from self._label_problems(name, entry, key, suffix)
        elif suffix == "npy":
            data = self._file.read(entry.offset_data, min(entry.size, MAX_NPY_HEADER), name)
            yield from object_array_problems(data, name, self.where)
            self._found.others += 1
        else:
            self._found.others += suffix not in LABEL_SUFFIXES

    def _image_problems(self, name: str, entry: tarfile.TarInfo, key: str) -> Iterator[Problem]:
        sample = self._samples.setdefault(key, Sample())
        if problem := too_large(name, self.where, entry.size):
            yield problem
        elif sample.image is not None:
            got = f"{sample.image[0]}, {name}"
            yield Problem("SD-D312", "two images of a shard have one key", self.where, got, fix="keep one of them")
        sample.image = (name, entry.size, entry.offset_data)

    def _label_problems(self, name: str, entry: tarfile.TarInfo, key: str, suffix: str) -> Iterator[Problem]:
        """Keep the label in KEY.cls, or in KEY.json if it has one; both may state it if they agree."""
        data = self._file.read(entry.offset_data, min(entry.size, MAX_LABEL_BYTES), name)
        try:
            label = label_in(data, suffix)
        except (ValueError, RecursionError) as unusable:
            yield no_label(name, self.where, str(unusable)[:80], "a whole number, the class")
            return
        if label is None:
            return
        sample = self._samples.setdefault(key, Sample())
        if sample.label not in (None, label):
            yield no_label(name, self.where, f"{sample.label} and {label}", "one label")
        sample.label = label

    def _incomplete(self) -> Iterator[Problem]:
        """Add the samples whose files are apart, and yield the problems of what is left.

        These are images without a label, and second images or labels of a sample that was complete before.
        """
        for key in list(self._samples):
            self._add(key)
        labels = dict(zip(self._keys, self._found.labels, strict=True)) if self._samples else {}
        return islice(self._problems_of_rest(labels), MAX_PROBLEMS)

    def _problems_of_rest(self, labels: Mapping[int, int]) -> Iterator[Problem]:
        for key, sample in self._samples.items():
            label = labels.get(hash_of(key.encode()))
            if label is None and sample.image is not None:
                expect = "its class, a whole number, in KEY.cls or KEY.json"
                yield no_label(sample.image[0], self.where, f"no {key}.cls, and no label in {key}.json", expect)
            elif label is not None and sample.image is not None:
                got, what = f"{sample.image[0]}, and another", "two images of a shard have one key"
                yield Problem("SD-D312", what, self.where, got, fix="keep one of them")
            elif label is not None and sample.label not in (None, label):
                yield no_label(key, self.where, f"{label} and {sample.label}", "one label")


def _key_of(name: str) -> tuple[str, str]:
    """Return KEY and the lower-case suffix after the first dot of the last part of a name."""
    folder, _, last = name.rpartition("/")
    stem, _, suffix = last.partition(".")
    return f"{folder}/{stem}" if folder else stem, suffix.lower()


def label_in(data: bytes, suffix: str) -> int | None:
    """Return the class in a label entry; None for JSON without a label. Raises ValueError."""
    if suffix == "cls":
        text = data.decode("ascii", "backslashreplace").strip()
        if not text.isdecimal() or len(text) > 18:
            raise ValueError(repr(text[:60]))
        return int(text)
    content = json.loads(data)
    if not isinstance(content, dict):
        return None
    label = next((content[key] for key in LABEL_KEYS if key in content), None)
    if label is not None and (isinstance(label, bool) or not isinstance(label, int) or not 0 <= label < 2**63):
        raise ValueError(repr(label)[:60])
    return label
