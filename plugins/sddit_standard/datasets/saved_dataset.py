"""Read images from a data set that Hugging Face's `datasets` saved on disk. No torch.

Its files are memory-mapped. Only the columns of images and labels are read, and images are decoded here, as everywhere.
"""

from __future__ import annotations

import json
import os
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from sddit.data.class_names import check_names
from sddit.errors import SdditError, error, one_of, raise_all
from sddit_standard.datasets.image_index import MAX_PROBLEMS, IndexBuilder
from sddit_standard.datasets.image_sources import (
    Contents,
    SourceFile,
    SourceSettings,
    cached_contents,
    class_problems,
    existing,
    names_of_labels,
    no_label,
    other_source,
    too_large,
)

EXPECT = "a folder that Dataset.save_to_disk wrote"
STATE = "state.json"


class ColumnSettings(SourceSettings, Protocol):
    """The settings of a saved data set."""

    @property
    def image_column(self) -> str: ...
    @property
    def label_column(self) -> str: ...


class SavedSource:
    """The images of a saved data set; the name of one is the number of its row.

    Raises SD-D300, -D304, -D307, -D310, -D316, -D321 or -D323.
    """

    def __init__(self, settings: ColumnSettings) -> None:
        self.location = existing(settings.path, "folder of a saved data set", folder=True)
        self._dataset = load(self.location)
        self._refuse_other_columns(settings)
        self._images = self._dataset.data.column(settings.image_column)
        files = [SourceFile.at(Path(file["filename"])) for file in self._dataset.cache_files]
        stamps = [[str(file.path), *file.stamp] for file in files]
        self.state = [stamps, settings.labels, settings.image_column, settings.label_column]
        self.contents = cached_contents(["hf", *self.state], lambda: self._list(settings))
        raise_all(list(class_problems(self.contents, settings, str(self.location)))[:MAX_PROBLEMS])

    def read(self, position: int) -> bytes:
        row = int(self.contents.index.places[position, 0])
        data: bytes = self._images[row]["bytes"].as_py()
        return data

    def where(self, position: int) -> str:
        return f"{self.location}: row {int(self.contents.index.places[position, 0])}"

    def _refuse_other_columns(self, settings: ColumnSettings) -> None:
        """Raise SD-D323 if a column is missing or holds something else."""
        columns = self._dataset.features
        wanted: dict[str, tuple[str, tuple[str, ...]]] = {"image_column": (settings.image_column, ("Image",))}
        if settings.labels:
            wanted["label_column"] = (settings.label_column, ("ClassLabel", "Value"))
        for key, (column, kinds) in wanted.items():
            if column not in columns:
                what, expect = f"the data set has no column {column!r}", one_of(column, columns)
                fix = f"dataset.{key} = the name of the column"
                raise refused(what, where=f"dataset.{key}", got=column, expect=expect, fix=fix)
            if (kind := type(columns[column]).__name__) not in kinds:
                what, expect = f"the column {column!r} does not hold what dataset.{key} names", " or ".join(kinds)
                raise refused(what, where=f"dataset.{key}", got=kind, expect=expect)

    def _list(self, settings: ColumnSettings) -> Contents:
        found, sizes = IndexBuilder(columns=1), self._sizes(settings.image_column)
        labels, names = self._labels(settings) if settings.labels else (np.zeros(len(sizes), np.int64), ())
        for row, (size, label) in enumerate(zip(memoryview(sizes.data), memoryview(labels.data), strict=True)):
            name = f"{row:09}"
            if problem := too_large(f"row {row}", f"{self.location}: row {row}", size):
                found.problems.append(problem)
            elif label < 0:
                found.problems.append(no_label(f"row {row}", str(self.location), "none, or -1", "the class"))
            found.add(name.encode(), size, row, label=label)
            if len(found.problems) >= MAX_PROBLEMS:
                break
        raise_all(found.problems)
        if settings.labels:
            names = names_of_labels(labels, names, str(self.location))
        return Contents(found.build(), names)

    def _sizes(self, column: str) -> NDArray[np.int64]:
        """Return the size of each image. Raises SD-D323 for rows that hold no bytes."""
        compute = import_module("pyarrow.compute")
        stored = compute.struct_field(self._images, "bytes")
        if stored.null_count:
            row = int(np.flatnonzero(stored.is_null().to_numpy())[0])
            path = self._images[row]["path"].as_py()
            got = f"row {row}: only the name of a file, {path}" if path else f"row {row}: nothing"
            fix = "fill or remove these rows, and save the data set with the images in it"
            raise refused(f"the column {column!r} lacks images", where=str(self.location), got=got, fix=fix)
        sizes: NDArray[np.int64] = compute.binary_length(stored).to_numpy().astype(np.int64)
        return sizes

    def _labels(self, settings: ColumnSettings) -> tuple[NDArray[np.int64], tuple[str, ...]]:
        """Return the label of each row, -1 for none, and the names of the classes, if the data set states them."""
        column = self._dataset.data.column(settings.label_column)
        if not str(column.type).startswith(("int", "uint")):
            what, expect = f"the column {settings.label_column!r} holds no class numbers", "a ClassLabel, or integers"
            raise refused(what, where="dataset.label_column", got=str(column.type), expect=expect)
        labels: NDArray[np.int64] = column.fill_null(-1).to_numpy().astype(np.int64)
        names = tuple(getattr(self._dataset.features[settings.label_column], "names", None) or ())
        check_names(names, where=f"{self.location}: {settings.label_column}")
        return labels, names


def refused(what: str, where: str, *, got: str = "", expect: str = "", fix: str = "") -> SdditError:
    """Return the error of a saved data set that cannot be used (SD-D323)."""
    return error("SD-D323", what, where=where, got=got[:200], expect=expect, fix=fix)


def load(folder: Path) -> Any:
    """Return the saved data set of a folder. Raises SD-D323."""
    if (folder / "dataset_dict.json").is_file():
        splits = sorted(path.parent.name for path in folder.glob("*/state.json"))
        first = "train" if "train" in splits or not splits else splits[0]
        fix = f"dataset.path = {folder / first}"
        what, got = "this folder holds several data sets, one for each split", ", ".join(splits)
        raise refused(what, where="dataset.path", got=got, expect="the folder of one split", fix=fix)
    _refuse_files_elsewhere(folder)
    library = import_module("datasets")
    try:
        return library.load_from_disk(os.fspath(folder))
    except Exception as failure:  # the library raises exceptions of many kinds
        got = f"{type(failure).__name__}: {failure}"
        what = "this folder is not a saved data set, or is damaged"
        raise refused(what, where=str(folder), got=got, expect=EXPECT, fix=other_source(folder, chosen="hf")) from None


def _refuse_files_elsewhere(folder: Path) -> None:
    """Raise SD-D323 if `state.json` names files outside of the folder. What else is wrong with it, the library says."""
    try:
        names = [str(file["filename"]) for file in json.loads((folder / STATE).read_bytes())["_data_files"]]
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return
    if elsewhere := [name for name in names if Path(name).name != name]:
        what, expect = f"{STATE} names a file outside of the folder", "names of files in it"
        raise refused(what, where=str(folder / STATE), got=elsewhere[0], expect=expect)
