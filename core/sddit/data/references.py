"""Read what a file of reference statistics states about its images, and compare it with samples. No torch.

`sddit-run reference` writes an `.npz` with the statistics of real images and a further entry `sddit`, a JSON text that
states how they were made. Files from elsewhere lack it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import file_digest
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from sddit.data.archives import StoredArray, load_arrays
from sddit.errors import Problem, error

ENTRY = "sddit"
IMAGES = "arr_0"  # of references that hold images, uint8 [n, H, W, 3]

Size = tuple[int, int]
"""Height and width."""


class ReferenceRecord(BaseModel):
    """How the statistics of a reference were made."""

    model_config = ConfigDict(strict=True, frozen=True)  # a later version may add keys

    format: Literal[1] = 1
    version: str  # of sddit
    images: int
    height: int
    width: int
    crop: str  # how the images were cut to their size, see `DataFacts.crop`; empty: not known
    source: str  # name of the folder, file or run
    split: str
    fingerprint: str  # of the data set
    files: dict[str, str]  # {option: sha256 of its file}, such as {"inception": ...}


@dataclass(frozen=True, slots=True)
class ReferenceFile:
    """What is known of the images of a reference."""

    path: Path
    record: ReferenceRecord | None  # None: the file states nothing
    size: Size | None  # of its images; None: not known


@dataclass(frozen=True, slots=True)
class SampleFacts:
    """What is known of the samples that are compared with a reference."""

    size: Size | None
    crop: str  # of the images that the model was trained on
    fingerprint: str  # of the data set of that training


def read_reference_file(path: Path) -> ReferenceFile:
    """Return what a file states about its images: nothing if it cannot be read as an `.npz`.

    Raises SD-T941 for a record that is damaged.
    """
    try:
        record = load_arrays(path, (ENTRY,)).get(ENTRY)
        images = StoredArray.find(path, IMAGES)
    except (OSError, ValueError):
        return ReferenceFile(path, None, None)
    size = (images.shape[1], images.shape[2]) if images is not None and len(images.shape) == 4 else None
    if record is None:
        return ReferenceFile(path, None, size)
    try:
        stated = ReferenceRecord.model_validate_json(str(record))
    except ValidationError as fault:
        first = fault.errors()[0]
        got = f"entry {ENTRY}: {'.'.join(map(str, first['loc']))} {first['msg']}"
        what, fix = "the record of this reference is damaged", "make it again with sddit-run reference"
        raise error("SD-T941", what, where=str(path), got=got, fix=fix) from None
    return ReferenceFile(path, stated, (stated.height, stated.width))


def record_array(record: ReferenceRecord) -> np.ndarray[tuple[int, ...], np.dtype[np.str_]]:
    """Return a record as an array for an `.npz`, which is read without pickles."""
    return np.array(record.model_dump_json())


def mismatches(
    reference: ReferenceFile, samples: SampleFacts, files: Mapping[str, str], *, where: str
) -> Iterator[Problem]:
    """Yield a problem (SD-T942) for each fact by which samples cannot be compared with a reference.

    Args:
        files: {option: sha256 of the file given now}, such as the weights of an extractor.
        where: the location in the messages.
    """
    record = reference.record
    if reference.size and samples.size and reference.size != samples.size:
        yield _mismatch("images of another size", where, _pixels(reference.size), f"samples of {_pixels(samples.size)}")
    if record is None:
        return
    if record.crop and samples.crop and record.crop != samples.crop:
        yield _mismatch("another crop of images", where, record.crop, f"{samples.crop}, as in the training of the run")
    for option, digest in files.items():
        if record.files.get(option, digest) != digest:
            what = f"another file of {option}"
            yield _mismatch(what, where, f"sha256 {record.files[option]:.12}", f"sha256 {digest:.12}, the file given")


def unchecked(reference: ReferenceFile, samples: SampleFacts, files: Mapping[str, str]) -> list[str]:
    """Return what is not known on one side, so that `mismatches` could not compare it."""
    record = reference.record
    same_data = record is not None and record.fingerprint == samples.fingerprint
    known = {
        "size": reference.size is not None and samples.size is not None,
        "crop": same_data or (record is not None and bool(record.crop) and bool(samples.crop)),
        **{option: record is not None and option in record.files for option in files},
    }
    return [name for name, is_known in known.items() if not is_known]


def not_compared(reference: Path, names: Sequence[str]) -> str:
    """Return a warning about what `unchecked` returned."""
    return f"not compared, since {reference.name} or the run does not state it: {', '.join(names)}"


def hashes(paths: Mapping[str, Path]) -> dict[str, str]:
    """Return the sha256 of each file, without those that cannot be read."""
    found = {}
    for name, path in paths.items():
        if path.is_file():
            with path.open("rb") as file:
                found[name] = file_digest(file, "sha256").hexdigest()
    return found


def _mismatch(what: str, where: str, got: str, expect: str) -> Problem:
    fix = "sddit-run reference RUN OUT.npz makes one for the data set of the run"
    return Problem("SD-T942", f"the reference was made of {what}", where, got, expect, fix)


def _pixels(size: Size) -> str:
    return f"{size[0]}x{size[1]} pixels"
