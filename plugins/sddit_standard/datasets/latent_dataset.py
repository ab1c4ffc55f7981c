"""Data sets without pixels as tensors: cached latents, and shapes that are only declared."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from sddit.data.latent_statistics import LOG_VARIANCE
from sddit.data.latents import Cache, Shard, read_index, verify_shards
from sddit.data.preview import Preview, over_image
from sddit.data.scaling import scaling
from sddit.errors import error
from sddit.interfaces import Split

if TYPE_CHECKING:
    from sddit_standard.datasets.params import LatentsParams

WHOLE = (
    *(torch.int8, torch.int16, torch.int32, torch.int64),
    *(torch.uint8, torch.uint16, torch.uint32, torch.uint64),
)
"""Types of labels."""


def latents(params: LatentsParams, *, split: Split) -> LatentSplit:
    """Cached latents: distributions to draw from, or their means."""
    return (DrawnLatentSplit if params.posterior == "sample" else LatentSplit)(params, split=split)


class LatentSplit:
    """One split of a folder of latents, read from files that are mapped into memory. Here: the means."""

    def __init__(self, params: LatentsParams, *, split: Split) -> None:
        cache = read_index(params.path)
        verify_shards(cache)
        self.facts = params.facts()
        self._index = cache.index
        self._shards = [open_shard(cache, shard) for shard in cache.index.shards]  # moments [n, 2C, h, w] of each
        self._ends = torch.tensor([shard.count for shard in cache.index.shards]).cumsum(0)
        self._rows = torch.from_numpy(cache.rows_of(split, params.holdout))  # [n] places in the whole cache
        self._labels = read_labels(cache, labelled=params.labels)[self._rows]
        seen = scaling(params, self.facts)
        self._scale, self._shift = over_image(seen.scale), over_image(seen.shift)
        self._preview = Preview(params, self.facts)

    def __len__(self) -> int:
        return len(self._rows)

    def labels(self) -> Tensor:
        """Return the label of every latent, [n] int64."""
        return self._labels

    def fetch(self, ids: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Means as the network sees them, [n, C, h, w] float32, and labels [n] int64 (0 without classes)."""
        index = torch.as_tensor(ids, dtype=torch.int64)
        mean = (self._half(index, 0) - self._index.shift) * self._index.scale
        return mean * self._scale + self._shift, self._labels[index]

    def to_images(self, x: Tensor) -> Tensor:
        """Three latent channels, uint8 [n, 3, h, w]: no decoder is here."""
        return self._preview.latents(x)

    def _half(self, index: Tensor, half: int) -> Tensor:
        """Return the first or second C channels of the latents at `index` [n], [n, C, h, w] float32, as they are
        stored.
        """
        channels = self._index.channels
        rows = self._rows[index]
        found = torch.empty(len(rows), *self.facts.image)
        holder = torch.bucketize(rows, self._ends, right=True)  # [n] which shard
        for number in sorted(set(holder.tolist())):
            here = holder == number
            moments = self._shards[number]
            within = rows[here] - (self._ends[number] - len(moments))
            found[here] = moments[within, half * channels : (half + 1) * channels].float()
        return found


class DrawnLatentSplit(LatentSplit):
    """The same as distributions: a `sddit.interfaces.DrawnDataset`."""

    def spread(self, ids: Sequence[int]) -> Tensor:
        """Standard deviations of the posterior as the network sees them, [n, C, h, w] float32."""
        second = self._half(torch.as_tensor(ids, dtype=torch.int64), 1)
        std = (second.clamp(*LOG_VARIANCE) / 2).exp() if self._index.layout == "mean+logvar" else second
        return std * self._index.scale * self._scale


def open_shard(cache: Cache, shard: Shard) -> Tensor:
    """Return the moments of a shard [n, 2C, h, w], which lie in the file until they are indexed."""
    expected = (shard.count, 2 * cache.index.channels, cache.index.height, cache.index.width)
    moments = read_tensor(cache.root / shard.file, "moments")
    if tuple(moments.shape) != expected or moments.dtype not in (torch.float16, torch.float32):
        raise error(
            "SD-D308",
            f"the moments of shard {shard.file} are not as the index says",
            where=str(cache.root / shard.file),
            got=f"{moments.dtype} {tuple(moments.shape)}",
            expect=f"float16 or float32 {expected}",
        )
    return moments


def read_labels(cache: Cache, *, labelled: bool) -> Tensor:
    """Labels of all rows [n] int64; zeros where the classes are not learned. Raises SD-D307 for an unknown class."""
    if not labelled or not cache.index.class_names:
        return torch.zeros(cache.index.rows, dtype=torch.int64)
    parts = []
    for shard in cache.index.shards:
        labels, highest = read_tensor(cache.root / shard.file, "labels"), len(cache.index.class_names) - 1
        whole = labels.dtype in WHOLE and labels.shape == (shard.count,)
        labels = labels.to(torch.int64) if whole else labels  # torch compares no uint16, uint32 and uint64
        if not whole or int(labels.min()) < 0 or int(labels.max()) > highest:
            raise error(
                "SD-D307",
                f"labels of shard {shard.file} are not class numbers",
                where=str(cache.root / shard.file),
                got=f"{int(labels.min())} to {int(labels.max())}" if whole else f"{labels.dtype} {tuple(labels.shape)}",
                expect=f"{shard.count} whole numbers from 0 to {highest}",
            )
        parts.append(labels.to(torch.int64))
    return torch.cat(parts)


def read_tensor(path: Path, name: str) -> Tensor:
    """Return one tensor of a safetensors file, mapped into memory."""
    try:
        with safe_open(path, framework="pt") as file:
            tensor: Tensor = file.get_tensor(name)
            return tensor
    except (SafetensorError, OSError) as failure:
        raise error(
            "SD-D342",
            f"shard {path.name} cannot be read",
            where=str(path),
            got=str(failure),
            fix="copy it again, or write the cache again",
        ) from None
