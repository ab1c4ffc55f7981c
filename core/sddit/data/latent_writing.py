"""Write a folder of cached latents, which `sddit.data.latents` reads. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatch
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sddit.data.class_names import check_names
from sddit.data.codec_record import CodecRecord
from sddit.data.colour_map import ColourFit
from sddit.data.latent_checks import refuse_implausible, refuse_unfit, usable_labels, usable_moments, warn_of_unused
from sddit.data.latent_statistics import Layout, MomentStatistics
from sddit.data.latents import INDEX, Flip, ImageSource, Index, Shard
from sddit.errors import error
from sddit.storage.atomic import STAGED_PREFIX, remove_leftovers, replace_file, storage_errors
from sddit.storage.lock import only_writer
from sddit.storage.run_folder import ensure_directory

SHARDS = "shard-[0-9][0-9][0-9][0-9][0-9].safetensors"


def write_cache(
    folder: str | Path,
    shards: Iterable[tuple[ArrayLike, ArrayLike]],
    *,
    layout: Layout,
    scale: float,
    encoder: str,
    class_names: Sequence[str],
    flip: Flip = "none",
    shift: float = 0.0,
    codec: CodecRecord | None = None,
    colours: ColourFit | None = None,
    images: ImageSource | None = None,
    allow_implausible: bool = False,
) -> Path:
    """Write latents as the data set `latents` reads them. Shards are written as they come, the index last.

    After an interruption, call it again with the same shards: it starts over, and the files are the same in the end.

    Args:
        folder: a new or empty folder, or shards without an index, which an interrupted call left and this one replaces.
        shards: pairs of moments [n, 2C, h, w] (float16 or float32, before scaling) and labels [n], one file each.
        layout: what the second C channels are.
        scale: factor that brings latents to a standard deviation near 1: 0.18215 for Stable Diffusion's first VAE.
        encoder: name of the VAE, with its range of pixel values.
        class_names: by label; empty: unconditional, and every label is 0.
        flip: `once` if images were mirrored at random before encoding, `both` if each is followed by its mirror image.
        shift: number that is subtracted from latents before the scale.
        codec: what made the latents, if it is a codec of sddit.
        images: the images that were encoded, if it is known which; rows are in the order of their splits.
        colours: a fit to which the caller adds each shard before it hands it over; its map is for previews.
        allow_implausible: write, and let readers read, moments that `sddit.data.latent_statistics` finds implausible.

    Returns the path of the index. Raises SD-D308 for unusable moments, SD-D344 for implausible ones, SD-D307 for
    labels, SD-D316 for class names, SD-D343 if already finished, SD-D346 for a folder of something else, SD-F715 while
    another process writes to it.
    """
    check_names(class_names, where="class_names")
    names = tuple(class_names)
    with _unfinished(Path(folder)) as root:
        written, statistics, shape = _write_shards(root, shards, layout, names)
        return write_index(
            root,
            written,
            statistics,
            shape=shape,
            layout=layout,
            scale=scale,
            encoder=encoder,
            class_names=names,
            flip=flip,
            shift=shift,
            codec=codec,
            colours=colours.result() if colours else None,
            images=images,
            allow_implausible=allow_implausible,
        )


def write_index(
    root: Path,
    shards: Sequence[Shard],
    statistics: MomentStatistics,
    *,
    shape: Sequence[int],
    layout: Layout,
    scale: float,
    shift: float,
    allow_implausible: bool,
    **stated: Any,
) -> Path:
    """Write the index of shards that are written, and return its path.

    Args:
        root: the folder of the shards.
        shards: in the order of their latents.
        statistics: of their moments.
        shape: (2C, h, w) of the moments of one image.
        layout: what the second C channels are.
        scale: factor of latents, after the shift.
        shift: number that is subtracted from latents.
        allow_implausible: write moments that `sddit.data.latent_statistics` finds implausible.
        stated: further keys of `sddit.data.latents.Index`.

    Raises:
        SdditError: SD-D344 for implausible moments.
    """
    if not allow_implausible:
        refuse_implausible(statistics, layout, shape, scale, root)
    mean, std, spread = statistics.scaled(scale, shift)
    index = Index(
        format=1,
        layout=layout,
        scale=scale,
        shift=shift,
        channels=shape[0] // 2,
        height=shape[1],
        width=shape[2],
        shards=tuple(shards),
        mean=mean,
        std=std,
        spread=spread,
        allow_implausible=allow_implausible,
        **stated,
    )
    replace_file(root / INDEX, (index.model_dump_json(indent=1, exclude=index.unset_keys) + "\n").encode())
    return root / INDEX


@contextmanager
def _unfinished(folder: Path) -> Iterator[Path]:
    """Create and lock the folder of a cache. Raises SD-D343 if a finished one is there, SD-D346 for something else."""
    root = ensure_directory(folder)
    with only_writer(root):
        if (root / INDEX).exists():
            raise error("SD-D343", "there is a finished cache of latents", where=str(root), fix="choose another folder")
        refuse_foreign(root, than=SHARDS)
        remove_leftovers(root)
        yield root


def refuse_foreign(root: Path, *, than: str = "") -> None:
    """Raise SD-D346 if a folder holds more than a killed process left, and than names that match a pattern."""
    with storage_errors(root):
        names = sorted(path.name for path in root.iterdir() if not path.name.startswith(STAGED_PREFIX))
    if foreign := [name for name in names if not fnmatch(name, than)]:
        raise error(
            "SD-D346",
            "the folder holds files of something else",
            where=str(root),
            got=", ".join(foreign[:5]),
            expect="a new or empty folder, or what an interrupted call of this command left",
            fix="choose another folder",
        )


def _remove_others(root: Path, written: Sequence[Shard]) -> None:
    """Remove the shards that an interrupted call with more of them left."""
    kept = {shard.file for shard in written}
    with storage_errors(root):
        for path in root.glob(SHARDS):
            if path.name not in kept:
                path.unlink()


def _write_shards(
    root: Path, shards: Iterable[tuple[ArrayLike, ArrayLike]], layout: Layout, names: Sequence[str]
) -> tuple[list[Shard], MomentStatistics, tuple[int, ...]]:
    """Write all shards. Returns them, the statistics of their moments, and the shape (2C, h, w) of one image's."""
    written: list[Shard] = []
    shape: tuple[int, ...] = ()
    statistics, seen = MomentStatistics(), set[int]()
    for number, (moments, labels) in enumerate(shards):
        where = f"shard {number}"
        array, numbers = usable_moments(moments, layout, where), usable_labels(labels, len(names), where)
        shape = shape or array.shape[1:]
        refuse_unfit(array, numbers, shape, where)
        statistics.add(array, layout)
        seen.update(np.unique(numbers).tolist())
        written.append(write_shard(root, number, array, numbers))
    if not written:
        raise error("SD-D308", "no latents to write", where=str(root), expect="at least one shard")
    warn_of_unused(names, seen)
    _remove_others(root, written)
    return written, statistics, shape


def write_shard(root: Path, number: int, moments: NDArray[Any], labels: NDArray[np.int64]) -> Shard:
    """Write one shard atomically, and return what the index states of it."""
    from safetensors.numpy import save

    rows = np.ascontiguousarray(moments)  # safetensors writes the memory of another order as it is
    name, data = shard_name(number), save({"moments": rows, "labels": labels})
    replace_file(root / name, data)
    return Shard(file=name, count=len(moments), bytes=len(data), sha256=sha256(data).hexdigest())


def shard_name(number: int) -> str:
    """Return the name of the file of a shard."""
    return f"shard-{number:05d}.safetensors"
