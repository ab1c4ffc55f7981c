"""Read, verify and write a folder of cached latents: encoder moments, one normal distribution per image. No torch.

    PATH/latents.json            index: layout, statistics, and size and sha256 of each shard
    PATH/shard-00000.safetensors moments [n, 2C, h, w] float16 or float32, labels [n] int64

The first C channels are means of the encoder's posterior, the others its log-variances (`mean+logvar`, the layout of
MaskDiT's files) or standard deviations (`mean+std`, the layout of EDM2's files). Both are stored unscaled; readers
subtract `shift` from means and multiply both by `scale`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property, reduce
from itertools import islice
from math import prod
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from sddit.data.codec_record import CodecRecord, is_colour_map_of
from sddit.data.facts_cache import cached
from sddit.data.latent_checks import (
    ALLOW,
    NEGATIVE,
    implausible_problems,
)
from sddit.data.latent_statistics import Layout, MomentStatistics, is_finite, scaled_findings
from sddit.data.order import keyed_words
from sddit.errors import Problem, SdditError, error, expand_user, one_of, out_of_memory, raise_all
from sddit.interfaces import ColourMap, Split, file_sha256
from sddit.storage.atomic import read_file

Flip = Literal["none", "once", "both"]

INDEX = "latents.json"
MAX_PROBLEMS = 5  # shown at once
MAX_ROWS = 10**9  # of one shard
MAX_SIDE = 65536  # channels, height and width
VALUES_AT_ONCE = 2**22  # that a check reads
MAX_MEASURED = 2**28  # values of a cache that are measured when it is read: of a larger one, every k-th latent
TOLERANCE, SAMPLED_TOLERANCE = 1e-3, 0.05  # of statistics, relative to the standard deviation
LATER = ("shift", "codec", "colours", "images", ALLOW)
COPY_AGAIN = "copy it again, or write the cache again"


class Shard(BaseModel):
    """One file of the cache."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    file: str = Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*\.safetensors$")
    count: int = Field(ge=1, le=MAX_ROWS)
    bytes: int = Field(ge=1)
    sha256: str = Field(pattern="^[0-9a-f]{64}$")


class ImageSource(BaseModel):
    """The images that latents were encoded from: a data set whose training images come first, then its held-out ones.

    Each row of the cache is one of them, or with `flip = "both"`, each pair of rows.
    """

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    dataset: str  # qualified name, such as sddit/folder
    settings: dict[str, Any]  # as a recipe has them
    fingerprint: str
    domain: str = ""  # as of DataFacts
    crop: str = ""
    train: int = Field(ge=1, le=MAX_ROWS)  # images of each split
    test: int = Field(ge=0, le=MAX_ROWS)
    licence: str = ""  # of the images, as the user states it


class Index(BaseModel):
    """`latents.json`."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)

    format: Literal[1]
    layout: Layout
    scale: float = Field(gt=0)
    channels: int = Field(ge=1, le=MAX_SIDE)
    height: int = Field(ge=1, le=MAX_SIDE)
    width: int = Field(ge=1, le=MAX_SIDE)
    encoder: str
    class_names: tuple[str, ...]
    # none; once: some were mirrored before encoding; both: rows 2i and 2i + 1 are image i and its mirror image
    flip: Flip
    shards: tuple[Shard, ...] = Field(min_length=1)
    mean: tuple[float, ...]  # of the scaled means, per channel
    std: tuple[Annotated[float, Field(ge=0)], ...]
    spread: tuple[Annotated[float, Field(ge=0)], ...]  # root mean square of the scaled standard deviations, per channel
    shift: float = 0.0  # subtracted from the means before they are scaled
    codec: CodecRecord | None = None  # that made the latents; None: an encoder elsewhere
    colours: ColourMap | None = None  # from unscaled latents to colours, for previews; None: not fitted
    images: ImageSource | None = None  # that were encoded, whose split the cache keeps; None: not known
    allow_implausible: bool = False  # read and train on moments that `latent_statistics` would refuse

    @cached_property
    def rows(self) -> int:
        """Number of distributions in all shards."""
        return sum(shard.count for shard in self.shards)

    @property
    def stride(self) -> int:
        """Measure every `stride`-th latent when the cache is read."""
        return -(-self.rows * prod(self.shape) // MAX_MEASURED)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape (2C, h, w) of the moments of one image."""
        return 2 * self.channels, self.height, self.width

    def __str__(self) -> str:
        return f"{self.rows:,} latents of {self.channels}x{self.height}x{self.width}, scale {self.scale:g}"

    def identity(self) -> dict[str, Any]:
        """Return what decides the latents that are read, as JSON."""
        return self.model_dump(mode="json", exclude={ALLOW, "codec", "colours", "images", *self.unset_keys})

    @property
    def unset_keys(self) -> set[str]:
        """Return keys of later versions that have their default: the index is written without them."""
        return {key for key in LATER if getattr(self, key) == type(self).model_fields[key].default}


def pair_of(flip: Flip) -> int:
    """Return the number of rows of an image."""
    return 2 if flip == "both" else 1


@dataclass(frozen=True, slots=True)
class Cache:
    """A folder of latents and its index."""

    root: Path
    index: Index

    def rows_of(self, split: Split, holdout: float) -> NDArray[np.int64]:
        """Return the rows of a split in rising order: those of the images' own split, if the index has it.

        Otherwise, the position of an image in the cache decides its split, so that appended shards change no split.
        """
        counted = f"{self.index.rows:,} latents"
        fix = f"correct the counts in {self.root / INDEX}, or use a machine with more memory"
        try:
            return self._rows_of(split, holdout)
        except (MemoryError, ValueError, OverflowError) as failure:
            raise out_of_memory(failure, "dataset.path, listing the latents of a split", counted, fix) from failure

    def _rows_of(self, split: Split, holdout: float) -> NDArray[np.int64]:
        pair = pair_of(self.index.flip)  # an image and its mirror image stay together
        if self.index.images is not None:
            train = self.index.images.train * pair
            return np.arange(train) if split == "train" else np.arange(train, self.index.rows)
        words = keyed_words("latents/split", self.index.rows // pair)
        held_out = words < np.uint64(min(int(holdout * 2**64), 2**64 - 1))
        return np.flatnonzero(np.repeat(held_out == (split == "test"), pair))


def read_index(path: str) -> Cache:
    """Read the index of the cache at `path`. Raises SD-D341 if there is none, or if it is invalid."""
    root = expand_user(path, "dataset.path")
    file = root / INDEX
    try:
        text = read_file(file).decode()
    except (OSError, UnicodeDecodeError) as failure:
        raise error(
            "SD-D341",
            "not a folder of latents",
            where="dataset.path",
            got=f"{path}: {_what_is_there(root, failure)}"[:400],
            expect=f"a folder with {INDEX} and shards",
            fix="set dataset.path=FOLDER, or make a cache with sddit-run encode, or sddit-run pack",
        ) from None
    try:
        index = Index.model_validate_json(text)
    except ValidationError as failure:
        raise SdditError(*_index_problems(failure, file)) from None
    means, stds, spreads = len(index.mean), len(index.std), len(index.spread)
    if {means, stds, spreads} != {index.channels}:
        what, got = f"{INDEX} states no mean, std and spread for each channel", f"{means}, {stds} and {spreads} numbers"
        raise error("SD-D341", what, where=str(file), got=got, expect=f"{index.channels} each")
    if index.flip == "both" and index.rows % 2:
        what, fix = 'flip = "both" needs an even number of latents', 'flip = "none" or "once", or write the cache again'
        raise error("SD-D341", what, where=str(file), got=f"{index.rows} latents", fix=fix)
    raise_all(list(_contradictions(index, file))[:MAX_PROBLEMS])
    return Cache(root.resolve(), index)


def _what_is_there(root: Path, failure: Exception) -> str:
    if not isinstance(failure, FileNotFoundError):
        return str(failure)
    return f"no {INDEX}" if root.is_dir() else "no such folder"


def _index_problems(failure: ValidationError, file: Path) -> Iterable[Problem]:
    details = failure.errors(include_url=False)
    inner = {detail["loc"] for detail in details}
    outer = {loc[:length] for loc in inner for length in range(len(loc))}  # what holds a wrong value is wrong, too
    for detail in [detail for detail in details if detail["loc"] not in outer][:MAX_PROBLEMS]:
        key = ".".join(map(str, detail["loc"])) or "the file"
        got = "" if detail["type"] == "missing" else str(detail["input"])[:80]
        expect = one_of(got, get_args(Layout)) if key == "layout" else detail["msg"]
        what = "unknown layout of latents" if key == "layout" else f"{INDEX} cannot be used: {key}"
        if detail["type"] == "json_invalid":
            what, got, expect = f"{INDEX} is invalid or truncated JSON", detail["msg"], ""
        yield Problem("SD-D341", what, str(file), got, expect, COPY_AGAIN)


def _contradictions(index: Index, file: Path) -> Iterator[Problem]:
    """Yield what the index alone shows to be wrong or implausible."""
    for shard in index.shards:
        needed = shard.count * prod(index.shape) * 2  # bytes, in float16
        if needed > shard.bytes:
            what = f"{INDEX} states more latents than shard {shard.file} can hold"
            got, expect = f"count = {shard.count:,}, bytes = {shard.bytes:,}", f"at least {needed:,} bytes for them"
            yield Problem("SD-D341", what, str(file), got, expect, COPY_AGAIN)
    if blank := [label for label, name in enumerate(index.class_names) if not name.strip()]:
        what, fix = f"the name of class {blank[0]} is blank", "remove it from class_names, or write a name"
        yield Problem("SD-D316", what, str(file), repr(index.class_names[blank[0]]), fix=fix)
    if index.images is not None and index.rows != (index.images.train + index.images.test) * pair_of(index.flip):
        what, got = "the images of this cache are not as many as its latents", f"{index.rows:,} latents"
        expect = f"{index.images.train:,} + {index.images.test:,} images, flip = {index.flip!r}"
        yield Problem("SD-D341", what, str(file), got, expect, COPY_AGAIN)
    if index.colours is not None and not is_colour_map_of(index.channels, index.colours):
        what, expect = (
            "the map to colours is not one of these latents",
            f"3 rows of {index.channels} numbers, and 3 offsets",
        )
        yield Problem("SD-D341", what, str(file), f"{len(index.colours.weights)} rows", expect, "remove colours")
    if not index.allow_implausible:
        yield from implausible_problems(scaled_findings(index.std, index.spread, index.scale), str(file))


def verify_shards(cache: Cache) -> None:
    """Compare every shard with the index: all bytes the first time, then its size and modification time.

    The moments of a large cache are measured on a sample; that all are finite is checked on all.

    Raises SD-D342 for shards that differ, SD-D308 for values that no moments have, SD-D344 for implausible ones and
    SD-D345 for statistics that the index states otherwise.
    """
    problems: list[Problem] = []
    parts: list[MomentStatistics] = []
    for shard in cache.index.shards:
        found = _verified(cache, shard)
        if isinstance(found, Problem):
            problems.append(found)
        elif found is not None:
            parts.append(found)
    raise_all(problems[:MAX_PROBLEMS])
    if len(parts) == len(cache.index.shards):
        raise_all(_unlike(cache, reduce(MomentStatistics.merged, parts)))


def _verified(cache: Cache, shard: Shard) -> Problem | MomentStatistics | None:
    """Return the statistics of a shard, or what is wrong with it; None if its tensors are not those of the index."""
    path, index = cache.root / shard.file, cache.index
    if path.is_symlink() or not path.is_file():
        return Problem("SD-D342", f"shard {shard.file} is missing", where=str(path), fix=COPY_AGAIN)
    status = path.stat()
    if status.st_size != shard.bytes:
        got, expect = f"{status.st_size:,} bytes", f"{shard.bytes:,}"
        return Problem("SD-D342", f"shard {shard.file} has another size", str(path), got, expect, COPY_AGAIN)
    key = ["latents", str(path), status.st_size, status.st_mtime_ns, index.layout, shard.count]
    key += [index.shape, index.stride]
    facts = cached(key, lambda: {"sha256": file_sha256(path), "statistics": _measure(path, shard, index)})
    if facts["sha256"] != shard.sha256:
        what = f"shard {shard.file} is not what {INDEX} says"
        return Problem("SD-D342", what, str(path), facts["sha256"], shard.sha256, COPY_AGAIN)
    if facts["statistics"] is None:
        return None
    statistics = MomentStatistics.from_json(facts["statistics"])
    if not statistics.finite:
        return Problem("SD-D308", "moments hold NaN or infinity", str(path), fix="encode them again in float32")
    if index.layout == "mean+std" and statistics.low < 0:
        return Problem("SD-D308", "a standard deviation is negative", str(path), f"{statistics.low:.4g}", fix=NEGATIVE)
    return statistics


def _measure(path: Path, shard: Shard, index: Index) -> dict[str, Any] | None:
    """Return the statistics of the moments of a shard; None if there are none of the shape that the index states."""
    from safetensors import SafetensorError, safe_open

    statistics = MomentStatistics()
    try:
        with safe_open(path, framework="np") as file:
            moments = file.get_slice("moments")
            if tuple(moments.get_shape()) != (shard.count, *index.shape) or moments.get_dtype() not in ("F16", "F32"):
                return None
            rows = max(1, VALUES_AT_ONCE // prod(index.shape))
            for start in range(0, shard.count, rows):
                part = moments[start : min(start + rows, shard.count)]
                statistics.add(part[:: index.stride], index.layout)
                statistics.finite = statistics.finite and is_finite(part)
    except (SafetensorError, OSError):
        return None
    return statistics.to_json()


def _unlike(cache: Cache, statistics: MomentStatistics) -> Iterator[Problem]:
    """Yield what is implausible about all moments, and the stated statistics that are not theirs."""
    index, where = cache.index, str(cache.root)
    if not index.allow_implausible:
        raise_all(implausible_problems(islice(statistics.findings(index.layout, index.shape), 1), where))
    own = statistics.scaled(index.scale, index.shift)
    tolerance = TOLERANCE if index.stride == 1 else SAMPLED_TOLERANCE
    for name, stated, found in zip(("mean", "std", "spread"), (index.mean, index.std, index.spread), own, strict=True):
        off = np.abs(np.subtract(stated, found)) > tolerance * np.maximum(own[1], found if name == "spread" else own[1])
        if off.any():
            channel = int(np.argmax(off))
            what = f"{INDEX} states another {name} than the shards have in channel {channel}"
            got, expect = f"{stated[channel]:.6g}", f"{found[channel]:.6g}"
            yield Problem("SD-D345", what, str(cache.root / INDEX), got, expect, "write the cache again")
