"""Read latents as LightningDiT and MaskDiT store them: safetensors shards, and an LMDB. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib import import_module
from importlib.util import find_spec
from math import isqrt
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sddit.data.latent_sources import AT_ONCE, PartsRequest, Shard, unreadable
from sddit.errors import SdditError, error

LMDB = "data.mdb"  # which the folder of an LMDB holds
LATENTS, MIRRORED, LABELS = "latents", "latents_flip", "labels"  # tensors of LightningDiT


def from_safetensors(source: Path, request: PartsRequest) -> Iterator[Shard]:
    """Read LightningDiT's form: latents [n, C, h, w] that were drawn once from the posterior, so their std is 0.

    With `flip = "both"`, each is followed by its mirror image, from the tensor `latents_flip`.
    """
    files = sorted(source.glob("*.safetensors")) if source.is_dir() else [source]
    for file in files:
        yield from _from_shard(file, request)


def _from_shard(source: Path, request: PartsRequest) -> Iterator[Shard]:
    from safetensors import SafetensorError, safe_open

    names = [LATENTS, *([MIRRORED] if request.flip == "both" else []), *([LABELS] if request.labelled else [])]
    try:
        with safe_open(source, framework="np") as file:
            if missing := [name for name in names if name not in file.keys()]:  # noqa: SIM118, not a mapping
                fix = {MIRRORED: "--flip none", LABELS: "omit --classes to train without classes"}.get(missing[0], "")
                got = ", ".join(sorted(file.keys()))
                what = f"no tensor {missing[0]} in the file"
                raise unreadable(what, source, got=got, expect=", ".join(names), fix=fix)
            latents = file.get_slice(LATENTS)
            shape = tuple(latents.get_shape())
            if len(shape) != 4 or latents.get_dtype() not in ("F16", "F32"):
                got, expect = f"{latents.get_dtype()} {shape}", "float16 or float32 [n, C, h, w]"
                raise unreadable("these are not latents", source, got=got, expect=expect)
            if request.flip == "both" and tuple(file.get_slice(MIRRORED).get_shape()) != shape:
                got, expect = str(tuple(file.get_slice(MIRRORED).get_shape())), str(shape)
                raise unreadable("the mirror images have another shape", source, got=got, expect=expect)
            labels = file.get_tensor(LABELS) if request.labelled else np.zeros(shape[0], dtype=np.int64)
            if labels.shape != (shape[0],):
                raise unreadable("labels of another number", source, got=str(labels.shape), expect=f"({shape[0]},)")
            for start in range(0, shape[0], AT_ONCE):
                rows = slice(start, min(start + AT_ONCE, shape[0]))
                parts = [file.get_slice(name)[rows] for name in names if name in (LATENTS, MIRRORED)]
                yield _without_posterior(_interleaved(parts)), labels[rows].repeat(len(parts))
    except (OSError, SafetensorError) as failure:
        raise unreadable("not a safetensors file", source, got=str(failure), expect="the file whole") from None


def _interleaved(parts: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """Return the first row of each part, then the second of each, and so on."""
    return np.stack(parts, axis=1).reshape(-1, *parts[0].shape[1:])


def _without_posterior(latents: NDArray[Any]) -> NDArray[Any]:
    return np.concatenate([latents, np.zeros_like(latents)], axis=1)


def from_lmdb(source: Path, request: PartsRequest) -> Iterator[Shard]:
    """Read MaskDiT's form: `length` entries `z-0`, `z-1`, ... of float32 moments, and their labels `y-0`, `y-1`, ...

    With mirror images, those of all images follow the images; `flip = "both"` reads each after its image.
    """
    lmdb = _lmdb(source)
    try:
        with (
            lmdb.open(str(source), readonly=True, lock=False, create=False, readahead=False) as environment,
            environment.begin(buffers=False) as entries,
        ):
            yield from _from_entries(_Entries(source, entries), request)
    except lmdb.Error as failure:
        raise unreadable("the LMDB cannot be read", source, got=str(failure), expect=f"a whole {LMDB}") from None


def _lmdb(source: Path) -> Any:
    """Return the package lmdb. Raises SD-P210 if it is not installed."""
    if find_spec("lmdb") is None:
        what, fix = "an LMDB needs the package lmdb", 'pip install "sddit[lmdb]"'
        raise error("SD-P210", what, where=str(source), got="not installed", expect="an installed package", fix=fix)
    return import_module("lmdb")


class _Entries:
    """The entries of an LMDB of latents. Numbers are read from their bytes; nothing is unpickled."""

    def __init__(self, source: Path, entries: Any) -> None:
        self._source, self._entries = source, entries

    def number(self, key: str) -> int:
        """Return a whole number that is stored as text."""
        text = bytes(self._value(key)[:20])
        if not text.isdigit():
            raise unreadable(f"the entry {key} is not a whole number", self._source, got=repr(text), expect="digits")
        return int(text)

    def moments(self, number: int, channels: int) -> NDArray[Any]:
        """Return the moments [2C, h, h] of a row."""
        data = self._value(f"z-{number}")
        places, rest = divmod(len(data), 4 * 2 * channels)
        side = isqrt(places)
        if rest or not side or side * side != places:
            got, expect = f"{len(data):,} bytes", f"float32 of {2 * channels} square channels"
            fix = "state the number of channels of a latent: --channels N"
            raise self.unusable(f"the entry z-{number} does not hold such moments", got, expect, fix)
        return np.frombuffer(data, dtype="<f4").reshape(2 * channels, side, side)

    def unusable(self, what: str, got: str, expect: str, fix: str = "") -> SdditError:
        """Return the error of an entry."""
        return unreadable(what, self._source, got=got, expect=expect, fix=fix)

    def _value(self, key: str) -> bytes:
        value = self._entries.get(key.encode())
        if value is None:
            expect = "length, z-0, z-1, ... and y-0, y-1, ... as MaskDiT's extract_latent.py writes them"
            raise self.unusable(f"the LMDB has no entry {key}", "other entries", expect)
        found: bytes = value
        return found


def _from_entries(entries: _Entries, request: PartsRequest) -> Iterator[Shard]:
    rows = entries.number("length")
    pair = 2 if request.flip == "both" else 1
    if not rows or rows % pair:
        what, fix = "the LMDB holds no mirror image for each image", "--flip none or --flip once"
        raise entries.unusable(what, f"length = {rows}", f"a multiple of {pair}, above 0", fix)
    count = rows // pair
    for start in range(0, count, AT_ONCE):
        numbers = [
            image + mirror * count for image in range(start, min(start + AT_ONCE, count)) for mirror in range(pair)
        ]
        moments = [entries.moments(number, request.channels) for number in numbers]
        if len(shapes := {one.shape for one in moments}) > 1:
            raise entries.unusable("entries of several shapes", ", ".join(map(str, sorted(shapes))), "one shape")
        labels = np.array([entries.number(f"y-{number}") if request.labelled else 0 for number in numbers])
        if pair == 2 and (wrong := np.flatnonzero(labels[::2] != labels[1::2])).size:
            image = start + int(wrong[0])
            got = f"label {labels[2 * wrong[0]]} of {image}, and {labels[2 * wrong[0] + 1]} of {image + count}"
            what, fix = "a mirror image has another label than its image", "--flip none or --flip once"
            raise entries.unusable(what, got, f"the mirror image of {image} at {image + count}", fix)
        yield np.stack(moments), labels.astype(np.int64)
