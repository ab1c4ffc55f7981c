"""Read the moments of an encoder from .npz files, and from folders as EDM2 and REPA write them. No torch."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sddit.data.archives import load_arrays
from sddit.data.latents import Flip
from sddit.errors import SdditError, error
from sddit.storage.atomic import read_file

AT_ONCE = 4096  # images of one shard
MAX_SHOWN = 5
LISTED = "dataset.json"
REPA_FOLDER = "vae-sd"

Shard = tuple[NDArray[Any], NDArray[Any]]


@dataclass(frozen=True, slots=True)
class PartsRequest:
    """What is asked of a source."""

    labelled: bool  # whether it must have labels; else they may be missing, and are 0 then
    flip: Flip = "none"
    channels: int = 4  # of a latent, where the source does not state it


def unreadable(what: str, where: Path, *, got: str = "", expect: str = "", fix: str = "") -> SdditError:
    """Return the error of a source that is missing or of another form."""
    return error("SD-D317", what, where=str(where), got=got[:200], expect=expect, fix=fix)


def from_archive(source: Path, request: PartsRequest) -> Iterator[Shard]:
    """Read the moments and labels of an .npz file."""
    what, expect = "not an .npz file of latents", "an .npz file with moments and labels, or a folder"
    if source.suffix == ".tar":
        got, fix = "a .tar, whose latents are pickles where MaskDiT wrote it", "give the LMDB that it was made of"
        raise unreadable(what, source, got=got, expect=expect, fix=fix)
    if not source.is_file():
        got = "not a regular file" if source.exists() else "no such file or folder"
        raise unreadable(what, source, got=got, expect=expect)
    try:
        arrays = load_arrays(source, ("moments", "labels"))
    except (OSError, ValueError) as failure:
        raise unreadable(what, source, got=str(failure), expect=expect) from None
    missing = [name for name in ("moments", "labels")[: 1 + request.labelled] if name not in arrays]
    if missing:
        fix = "save it with numpy.savez(FILE, moments=..., labels=...)"
        fix += ", or omit --classes" if missing == ["labels"] else ""
        what, got = f"no {' and no '.join(missing)} in the file", ", ".join(arrays) or "other arrays"
        raise unreadable(what, source, got=got, expect=expect, fix=fix)
    moments = arrays["moments"]
    yield moments, arrays.get("labels", np.zeros(len(moments) if moments.ndim else 0, dtype=np.int64))


def from_folder(folder: Path, request: PartsRequest) -> Iterator[Shard]:
    """Read EDM2's form: dataset.json lists (file, label); each file holds means and standard deviations [2C, h, w].

    REPA keeps such a folder under the name `vae-sd`, next to the images.
    """
    if not (folder / LISTED).exists() and (folder / REPA_FOLDER / LISTED).exists():
        folder = folder / REPA_FOLDER
    listed = read_list(folder, labelled=request.labelled)
    for start in range(0, len(listed), AT_ONCE):
        some = listed[start : start + AT_ONCE]
        moments = [read_moments(folder, name) for name, _ in some]
        if len(shapes := {one.shape for one in moments}) > 1:
            got = ", ".join(map(str, sorted(shapes)[:MAX_SHOWN]))
            raise unreadable("files of several shapes", folder, got=got, expect="one shape [2C, h, w]")
        yield np.stack(moments).astype(np.float32), np.array([label for _, label in some], dtype=np.int64)


def read_list(folder: Path, *, labelled: bool) -> list[tuple[str, int]]:
    """Return the (file, label) pairs of dataset.json. Labels that are null belong to an unlabelled set."""
    index = folder / LISTED
    what, expect = "not a folder of latents", 'dataset.json with {"labels": [["FILE.npy", CLASS], ...]}'
    try:
        content = json.loads(read_file(index).decode("utf-8-sig"))
    except FileNotFoundError:
        raise unreadable(what, folder, got="no dataset.json", expect=expect) from None
    except (OSError, ValueError, RecursionError) as failure:
        raise unreadable("dataset.json cannot be read", index, got=str(failure), expect=expect) from None
    if not isinstance(content, dict) or "labels" not in content:
        got = ", ".join(map(str, content)) if isinstance(content, dict) else type(content).__name__
        raise unreadable("dataset.json has no labels", index, got=got, expect=expect)
    if content["labels"] is None:
        if labelled:
            fix = "omit --classes to train without classes, or list a label for each file"
            raise unreadable("dataset.json states no labels, and --classes needs some", index, got="null", fix=fix)
        files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.npy"))
        if not files:
            raise unreadable(what, folder, got="no .npy file", expect="img-mean-std-*.npy files")
        return [(name, 0) for name in files]
    if not isinstance(content["labels"], list) or not content["labels"]:
        raise unreadable("dataset.json lists no files", index, got=str(content["labels"]), expect=expect)
    return [checked_pair(pair, index) for pair in content["labels"]]


def checked_pair(pair: Any, index: Path) -> tuple[str, int]:
    """Return one (file, label) of dataset.json."""
    expect = '["FILE.npy", CLASS], a path inside the folder and a whole number'
    if not (isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], str)):
        raise unreadable("an entry of dataset.json is not a file and its label", index, got=repr(pair), expect=expect)
    name, label = pair[0].replace("\\", "/"), pair[1]  # as written on Windows
    if Path(name).is_absolute() or ".." in Path(name).parts or "\0" in name:
        raise unreadable("dataset.json names a file elsewhere", index, got=repr(pair[0]), expect=expect)
    if isinstance(label, str) and label.isdecimal() and len(label) < 19:
        label = int(label)
    if isinstance(label, bool) or not isinstance(label, int) or not 0 <= label < 2**63:
        raise unreadable(f"the label of {name} is not a class number", index, got=repr(label), expect=expect)
    return name, label


def read_moments(folder: Path, name: str) -> NDArray[Any]:
    """Read one file of means and standard deviations [2C, h, w]."""
    path = folder / name
    if not path.is_file():
        got = "not a regular file" if path.exists() else "no such file"
        fix = "copy the file, or remove its entry from dataset.json"
        raise unreadable("a file that dataset.json lists is missing", path, got=got, fix=fix)
    try:
        loaded = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as failure:
        raise unreadable("a file cannot be read as an array", path, got=str(failure), expect="an .npy file") from None
    if not isinstance(loaded, np.ndarray) or loaded.ndim != 3 or loaded.dtype.kind != "f":
        got = f"{loaded.dtype} {loaded.shape}" if isinstance(loaded, np.ndarray) else "an archive"
        raise unreadable("a file does not hold moments", path, got=got, expect="numbers of shape [2C, h, w]")
    return loaded
