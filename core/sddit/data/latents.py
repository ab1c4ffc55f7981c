"""Read, verify and write a folder of cached latents: encoder moments, one normal distribution per image. No torch.

    PATH/latents.json            index: layout, statistics, and size and sha256 of each shard
    PATH/shard-00000.safetensors moments [n, 2C, h, w] float16 or float32, labels [n] int64

The first C channels are means of the encoder's posterior, the others its log-variances (`mean+logvar`, the layout of
MaskDiT's files) or standard deviations (`mean+std`, the layout of EDM2's files). Both are stored unscaled; readers
multiply by `scale`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import file_digest, sha256
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from sddit.data.facts_cache import cached
from sddit.data.order import keyed_words
from sddit.errors import Problem, SdditError, error, expand_user, one_of, out_of_memory, raise_all
from sddit.interfaces import Split
from sddit.storage.atomic import replace_file

Layout = Literal["mean+logvar", "mean+std"]
Flip = Literal["none", "once", "both"]

INDEX = "latents.json"
LOG_VARIANCE = (-30.0, 20.0)  # range to which MaskDiT and the VAE clamp it
PLAUSIBLE = (0.25, 2.5)  # standard deviation of scaled latents; outside, the scale is missing or was applied twice
MAX_PROBLEMS = 5  # shown at once
COPY_AGAIN = "copy it again, or write the cache again"


class Shard(BaseModel):
    """One file of the cache."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    file: str = Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*\.safetensors$")
    count: int = Field(ge=1)
    bytes: int = Field(ge=1)
    sha256: str = Field(pattern="^[0-9a-f]{64}$")


class Index(BaseModel):
    """`latents.json`."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)

    format: Literal[1]
    layout: Layout
    scale: float = Field(gt=0)
    channels: int = Field(ge=1)
    height: int = Field(ge=1)
    width: int = Field(ge=1)
    encoder: str
    class_names: tuple[str, ...]
    # none; once: some were mirrored before encoding; both: rows 2i and 2i + 1 are image i and its mirror image
    flip: Flip
    shards: tuple[Shard, ...] = Field(min_length=1)
    mean: tuple[float, ...]  # of the scaled means, per channel
    std: tuple[float, ...]
    spread: tuple[float, ...]  # root mean square of the scaled standard deviations, per channel

    @cached_property
    def rows(self) -> int:
        """Number of distributions in all shards."""
        return sum(shard.count for shard in self.shards)


@dataclass(frozen=True, slots=True)
class Cache:
    """A folder of latents and its index."""

    root: Path
    index: Index

    def rows_of(self, split: Split, holdout: float) -> NDArray[np.int64]:
        """Return the rows of a split in rising order.

        The position of an image in the cache decides its split, so that appended shards change no split.
        """
        counted = f"{self.index.rows:,} latents"
        fix = f"correct the counts in {self.root / INDEX}, or use a machine with more memory"
        try:
            return self._rows_of(split, holdout)
        except (MemoryError, ValueError, OverflowError) as failure:
            raise out_of_memory(failure, "dataset.path, listing the latents of a split", counted, fix) from failure

    def _rows_of(self, split: Split, holdout: float) -> NDArray[np.int64]:
        pair = 2 if self.index.flip == "both" else 1  # an image and its mirror image stay together
        words = keyed_words("latents/split", self.index.rows // pair)
        held_out = words < np.uint64(min(int(holdout * 2**64), 2**64 - 1))
        return np.flatnonzero(np.repeat(held_out == (split == "test"), pair))


def read_index(path: str) -> Cache:
    """Read the index of the cache at `path`. Raises SD-D341 if there is none, or if it is invalid."""
    root = expand_user(path, "dataset.path")
    file = root / INDEX
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as failure:
        raise error(
            "SD-D341",
            "not a folder of latents",
            where="dataset.path",
            got=f"{path}: {_what_is_there(root, failure)}",
            expect=f"a folder with {INDEX} and shards",
            fix="set dataset.path=FOLDER, or write a cache from arrays with tools/make_latents.py",
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
    return Cache(root.resolve(), index)


def _what_is_there(root: Path, failure: Exception) -> str:
    if not isinstance(failure, FileNotFoundError):
        return str(failure)
    return f"no {INDEX}" if root.is_dir() else "no such folder"


def _index_problems(failure: ValidationError, file: Path) -> Iterable[Problem]:
    for detail in failure.errors(include_url=False)[:MAX_PROBLEMS]:
        key = ".".join(map(str, detail["loc"])) or "the file"
        got = "" if detail["type"] == "missing" else str(detail["input"])[:80]
        expect = one_of(got, get_args(Layout)) if key == "layout" else detail["msg"]
        what = "unknown layout of latents" if key == "layout" else f"{INDEX} cannot be used: {key}"
        if detail["type"] == "json_invalid":
            what, got, expect = f"{INDEX} is invalid or truncated JSON", detail["msg"], ""
        yield Problem("SD-D341", what, str(file), got, expect, COPY_AGAIN)


def verify_shards(cache: Cache) -> None:
    """Compare every shard with the index: all bytes the first time, then its size and modification time.

    Raises SD-D342 for all shards that differ, at most MAX_PROBLEMS.
    """
    problems = (_shard_problem(cache.root, shard) for shard in cache.index.shards)
    raise_all([problem for problem in problems if problem][:MAX_PROBLEMS])


def _shard_problem(root: Path, shard: Shard) -> Problem | None:
    path = root / shard.file
    if path.is_symlink() or not path.is_file():
        return Problem("SD-D342", f"shard {shard.file} is missing", where=str(path), fix=COPY_AGAIN)
    status = path.stat()
    if status.st_size != shard.bytes:
        got, expect = f"{status.st_size:,} bytes", f"{shard.bytes:,}"
        return Problem("SD-D342", f"shard {shard.file} has another size", str(path), got, expect, COPY_AGAIN)
    stamp = [str(path), status.st_size, status.st_mtime_ns]
    if (found := cached(["latents", stamp], lambda: {"sha256": _sha256(path)})["sha256"]) != shard.sha256:
        what = f"shard {shard.file} is not what {INDEX} says"
        return Problem("SD-D342", what, str(path), found, shard.sha256, COPY_AGAIN)
    return None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return file_digest(file, "sha256").hexdigest()


def write_cache(
    folder: str | Path,
    shards: Iterable[tuple[ArrayLike, ArrayLike]],
    *,
    layout: Layout,
    scale: float,
    encoder: str,
    class_names: Sequence[str],
    flip: Flip = "none",
) -> Path:
    """Write latents as the data set `latents` reads them. Shards are written as they come, the index last.

    Args:
        folder: a new or unfinished cache; a finished one is not overwritten.
        shards: pairs of moments [n, 2C, h, w] (float16 or float32, before scaling) and labels [n], one file each.
        layout: what the second C channels are.
        scale: factor that brings latents to a standard deviation near 1: 0.18215 for Stable Diffusion's first VAE.
        encoder: name of the VAE, with its range of pixel values.
        class_names: by label; empty: unconditional, and every label is 0.
        flip: `once` if images were mirrored at random before encoding, `both` if each is followed by its mirror image.

    Returns the path of the index. Raises SD-D308 for unusable moments, SD-D307 for labels, SD-D343 if already finished.
    """
    root = Path(folder)
    if (root / INDEX).exists():
        raise error("SD-D343", "there is a finished cache of latents", where=str(root), fix="choose another folder")
    root.mkdir(parents=True, exist_ok=True)
    written: list[Shard] = []
    shape: tuple[int, ...] = ()  # (2C, h, w)
    statistics = _Statistics()
    for number, (moments, labels) in enumerate(shards):
        where = f"shard {number}"
        array, numbers = _usable_moments(moments, layout, where), _usable_labels(labels, len(class_names), where)
        shape = shape or array.shape[1:]
        if array.shape[1:] != shape or len(array) != len(numbers):
            got = f"moments {array.shape}, labels {numbers.shape}"
            expect = f"(n, {', '.join(map(str, shape))}) and (n,)"
            raise error("SD-D308", "shards do not fit together", where=where, got=got, expect=expect)
        statistics.add(*mean_and_std(array, layout))
        written.append(_write_shard(root, number, array, numbers))
    if not written:
        raise error("SD-D308", "no latents to write", where=str(root), expect="at least one shard")
    mean, std, spread = statistics.scaled(scale)
    index = Index(
        format=1,
        layout=layout,
        scale=scale,
        channels=shape[0] // 2,
        height=shape[1],
        width=shape[2],
        encoder=encoder,
        class_names=tuple(class_names),
        flip=flip,
        shards=tuple(written),
        mean=mean,
        std=std,
        spread=spread,
    )
    replace_file(root / INDEX, (index.model_dump_json(indent=1) + "\n").encode())
    return root / INDEX


def mean_and_std(moments: NDArray[Any], layout: Layout) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return means and standard deviations, each [n, C, h, w], before scaling."""
    mean, second = np.split(moments.astype(np.float64), 2, axis=1)
    return mean, np.exp(np.clip(second, *LOG_VARIANCE) / 2) if layout == "mean+logvar" else second


class _Statistics:
    """Accumulate mean, standard deviation and posterior spread per channel over shards (Chan et al. 1979)."""

    def __init__(self) -> None:
        self.count = 0  # of values in each channel
        self.mean = self.squares = self.spread = np.zeros(1)  # [C] from the first shard on

    def add(self, mean: NDArray[np.float64], std: NDArray[np.float64]) -> None:
        """Add means and standard deviations, each [n, C, h, w]."""
        axes = (0, 2, 3)
        here = mean.size // mean.shape[1]
        total, step = self.count + here, mean.mean(axis=axes) - self.mean
        self.squares = self.squares + mean.var(axis=axes) * here + step**2 * (self.count * here / total)
        self.mean = self.mean + step * (here / total)
        self.spread = self.spread + (std**2).sum(axis=axes)
        self.count = total

    def scaled(self, scale: float) -> list[tuple[float, ...]]:
        """Return mean, standard deviation and spread of scaled latents. Raises SD-D308 for an implausible scale."""
        std, spread = np.sqrt(self.squares / self.count), np.sqrt(self.spread / self.count)
        pooled = float(np.sqrt(np.mean(np.square(scale * std))))
        low, high = PLAUSIBLE
        if not low <= pooled <= high:
            fix = f"scale = {scale / pooled:.4g} gives 1" if pooled else "check the encoder: these latents do not vary"
            raise error(
                "SD-D308",
                "latents of this scale do not suit a diffusion model: the scale is missing or was applied twice",
                where="scale",
                got=f"{scale:g}, which gives a standard deviation of {pooled:.3g}",
                expect=f"a standard deviation from {low:g} to {high:g}",
                fix=fix,
            )
        return [tuple((scale * values).tolist()) for values in (self.mean, std, spread)]


def _usable_moments(moments: ArrayLike, layout: Layout, where: str) -> NDArray[Any]:
    array = np.ascontiguousarray(moments)
    if layout not in get_args(Layout):
        raise error(
            "SD-D341", f"unknown layout of latents {layout!r}", where=where, expect=one_of(layout, get_args(Layout))
        )
    if array.ndim != 4 or array.shape[1] % 2 or 0 in array.shape or array.dtype not in (np.float16, np.float32):
        raise error(
            "SD-D308",
            "these arrays cannot be moments",
            where=where,
            got=f"{array.dtype} {array.shape}",
            expect="float16 or float32 of shape (n, 2C, h, w): C means, then C log-variances or standard deviations",
        )
    if not np.isfinite(array).all():
        raise error("SD-D308", "moments hold NaN or infinity", where=where, fix="encode in float32")
    if layout == "mean+std" and array[:, array.shape[1] // 2 :].min() < 0:
        raise error(
            "SD-D308", "a standard deviation is negative", where=where, fix='if these are log-variances: "mean+logvar"'
        )
    return array


def _usable_labels(labels: ArrayLike, classes: int, where: str) -> NDArray[np.int64]:
    array = np.asarray(labels)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise error(
            "SD-D307",
            "these arrays cannot be labels",
            where=where,
            got=f"{array.dtype} {array.shape}",
            expect="whole numbers (n,)",
        )
    highest = max(classes, 1) - 1
    if len(array) and not 0 <= array.min() <= array.max() <= highest:
        got, expect = f"{array.min()} to {array.max()}", f"0 to {highest}"
        raise error("SD-D307", "a label is out of range", where=where, got=got, expect=expect)
    return array.astype(np.int64)


def _write_shard(root: Path, number: int, moments: NDArray[Any], labels: NDArray[np.int64]) -> Shard:
    from safetensors.numpy import save

    name, data = f"shard-{number:05d}.safetensors", save({"moments": moments, "labels": labels})
    replace_file(root / name, data)
    return Shard(file=name, count=len(moments), bytes=len(data), sha256=sha256(data).hexdigest())
