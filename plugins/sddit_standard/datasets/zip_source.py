"""Read images from a .zip archive, in EDM2's form with labels in dataset.json, or in class folders. No torch."""

from __future__ import annotations

import os
from collections.abc import Iterator
from json import JSONDecodeError, JSONDecoder
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sddit.errors import Problem, SdditError, error, raise_all
from sddit_standard.datasets.image_index import MAX_PROBLEMS, ImageIndex, IndexBuilder
from sddit_standard.datasets.image_sources import (
    Contents,
    NamedSettings,
    SourceFile,
    cached_contents,
    class_of,
    class_problems,
    existing,
    loose_problem,
    names_of_labels,
    no_label,
    stated_names,
)
from sddit_standard.datasets.zip_archive import LABELS, Entry, list_entries, read_entry

MAX_LABEL_BYTES = 2**30  # of dataset.json, unpacked; that of 1.3 million images takes 50 MB
FORM = '{"labels": [["FILE.png", CLASS], ...]}'


class ZipSource:
    """The images of a .zip archive, listed once and cached.

    Raises SD-D300, -D304, -D307, -D310 to -D314, -D321 or -D322.
    """

    def __init__(self, settings: NamedSettings) -> None:
        self.location = existing(settings.path, "archive of images", folder=False)
        self._file = SourceFile.at(self.location)
        names = stated_names(settings.class_names)
        self.state = [str(self.location), self._file.stamp, settings.labels, names]
        self.contents = cached_contents(["zip", *self.state], lambda: self._list(settings, names))
        raise_all(list(class_problems(self.contents, settings, str(self.location)))[:MAX_PROBLEMS])

    def read(self, position: int) -> bytes:
        index = self.contents.index
        offset, packed, method, crc = map(int, index.places[position])
        return read_entry(self._file, index.name(position), int(index.sizes[position]), (offset, packed, method, crc))

    def where(self, position: int) -> str:
        return f"{self.location}: {self.contents.index.name(position)}"

    def _list(self, settings: NamedSettings, names: tuple[str, ...]) -> Contents:
        found, tops, labels = list_entries(self._file)
        index = found.build()
        _refuse_duplicates(index, str(self.location))
        if not settings.labels:
            return Contents(index, (), found.others)
        if labels is None and names:
            what, fix = "the classes have names already: those of their folders", "remove dataset.class_names"
            raise error("SD-D316", what, where="dataset.class_names", got=settings.class_names, fix=fix)
        if labels is None:
            return _by_folders(index, tops, found)
        numbers = self._read_labels(index, labels)
        index = index.labelled(numbers)
        return Contents(index, names_of_labels(numbers, names, f"{self.location}: {LABELS}"), found.others)

    def _read_labels(self, index: ImageIndex, entry: Entry) -> NDArray[np.int64]:
        """Return the label of each image. Raises SD-D321 for images without one or with two, and for labels without an
        image.
        """
        where = f"{self.location}: {LABELS}"
        if entry.size > MAX_LABEL_BYTES:
            expect = f"at most {MAX_LABEL_BYTES:,} bytes"
            raise error("SD-D311", f"{LABELS} is too large", where=where, got=f"{entry.size:,} bytes", expect=expect)
        data = read_entry(self._file, LABELS, entry.size, entry.place)
        labels = np.full(len(index), -1, dtype=np.int64)
        order = np.argsort(index.hashes)
        problems: list[Problem] = []
        for name, label in _listed_labels(data, where):
            if (position := index.find(name.encode(), order)) is None:
                fix = "add the image, or remove its entry"
                problems.append(Problem("SD-D321", f"{LABELS} lists an image that is not there", where, name, fix=fix))
            elif labels[position] not in (-1, label):
                problems.append(no_label(name, where, f"{labels[position]} and {label}", "one label"))
            else:
                labels[position] = label
            if len(problems) >= MAX_PROBLEMS:
                break
        if not problems:
            without = np.flatnonzero(labels < 0)[:MAX_PROBLEMS]
            problems += [no_label(index.name(int(i)), where, "no entry", FORM) for i in without]
        raise_all(problems)
        return labels


def _refuse_duplicates(index: ImageIndex, where: str) -> None:
    """Raise SD-D312 if two entries have one name: which of them is meant is not known."""
    if (name := index.repeated_name()) is not None:
        fix = "keep one of them"
        raise error("SD-D312", "two entries of the archive have one name", where=where, got=name, fix=fix)


def _by_folders(index: ImageIndex, tops: set[str], found: IndexBuilder) -> Contents:
    """Return the images of class folders, as `folder` has them."""
    class_names = tuple(sorted(tops, key=os.fsencode))
    loose = [name.decode() for name in index.names() if b"/" not in name]
    if loose:
        raise SdditError(loose_problem(loose, bool(class_names)))
    number = {name: label for label, name in enumerate(class_names)}
    labels = np.fromiter((number[class_of(name.decode())] for name in index.names()), np.int64, len(index))
    return Contents(index.labelled(labels), class_names, found.others)


def _listed_labels(data: bytes, where: str) -> Iterator[tuple[str, int]]:
    """Yield (file, label) of dataset.json, one after another: as one value they would take some 300 bytes each."""
    expect, fix = FORM, "write the labels in this form, or set dataset.labels=false"
    try:
        for pair in _items_of(data.decode("utf-8-sig"), "labels"):
            if pair is None:
                what, fix = f"{LABELS} states that there are no labels", "dataset.labels=false trains without classes"
                raise error("SD-D321", what, where=where, got='"labels": null', expect=expect, fix=fix)
            yield _checked(pair, where)
    except (ValueError, RecursionError) as broken:
        what = f"{LABELS} cannot be read"
        raise error("SD-D321", what, where=where, got=str(broken)[:200], expect=expect, fix=fix) from None


def _checked(pair: Any, where: str) -> tuple[str, int]:
    """Return one file and its label."""
    if not (isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], str)):
        raise ValueError(f"an entry is {pair!r:.80}, not [FILE, CLASS]")
    name, label = pair[0].replace("\\", "/"), pair[1]  # as written on Windows
    if isinstance(label, bool) or not isinstance(label, int) or not 0 <= label < 2**63:
        raise SdditError(no_label(name, where, f"{label!r:.80}", "a whole number, the class"))
    return name, label


def _items_of(text: str, key: str) -> Iterator[Any]:
    """Yield the items of the list at a key of a JSON object; None for null. Raises ValueError for anything else."""
    decoder, at = JSONDecoder(), _after(text, 0, "{")
    while True:
        name, at = decoder.raw_decode(text, _blank(text, at))
        at = _blank(text, _after(text, at, ":"))
        if name != key:
            _, at = decoder.raw_decode(text, at)
            at = _after(text, at, ",", f"no {key!r}")
            continue
        if text.startswith("null", at):
            yield None
            return
        at = _blank(text, _after(text, at, "["))
        while not text.startswith("]", at):
            item, at = decoder.raw_decode(text, at)
            yield item
            at = _blank(text, at)
            if not text.startswith("]", at):
                at = _blank(text, _after(text, at, ","))
        return


def _after(text: str, at: int, character: str, otherwise: str = "") -> int:
    """Return the position behind a character that must be next."""
    at = _blank(text, at)
    if not text.startswith(character, at):
        raise JSONDecodeError(otherwise or f"expected {character!r}", text, at)
    return at + 1


def _blank(text: str, at: int) -> int:
    """Return the position of the next character that is not blank."""
    while text[at : at + 1] in {" ", "\t", "\n", "\r"}:
        at += 1
    return at
