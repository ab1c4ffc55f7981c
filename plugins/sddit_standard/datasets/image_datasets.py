"""The data sets as tensors. Images wait as bytes, in memory or on disk, and are scaled when they are fetched."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sddit.data.preview import Preview, over_image
from sddit.data.scaling import scaling
from sddit.interfaces import DataFacts, DatasetParams, Split
from sddit_standard.datasets.embedded import Table, embedded_table
from sddit_standard.datasets.emoji import emoji_table
from sddit_standard.datasets.fashion import fashion_table
from sddit_standard.datasets.image_facts import image_facts, read_image

if TYPE_CHECKING:
    from sddit_standard.datasets.params import DigitsParams, EmojiParams, FashionParams, ImageFilesParams

MEMORY_BUDGET = 2**30
"""Bytes of decoded images that one split of files keeps. Past it, the other images are decoded at each fetch."""


def digits(params: DigitsParams, *, split: Split) -> MemorySplit:
    """Handwritten digits."""
    return MemorySplit(params, embedded_table("digits", split), labelled=params.labels)


def fashion(params: FashionParams, *, split: Split) -> MemorySplit:
    """Fashion-MNIST."""
    return MemorySplit(params, fashion_table(params.source, split), labelled=params.labels)


def emoji(params: EmojiParams, *, split: Split) -> MemorySplit:
    """Noto emoji."""
    table = emoji_table(split, size=params.size, flags=params.flags, skin_variants=params.skin_variants)
    return MemorySplit(params, table, labelled=params.labels)


def image_files(params: ImageFilesParams, *, split: Split) -> FileSplit:
    """Return the user's own images, from a folder, an archive or a saved data set."""
    return FileSplit(params, split=split)


class ImageSplit:
    """One split of a data set of images with whole-numbered levels 0..levels."""

    def __init__(self, params: DatasetParams, labels: Tensor, levels: int, *, facts: DataFacts | None = None) -> None:
        self.facts = facts or params.facts()
        self._labels = labels  # [n] int64
        self._levels = levels
        seen = scaling(params, self.facts)
        self._scale, self._shift = over_image(seen.scale), over_image(seen.shift)
        self._preview = Preview(params, self.facts)

    def __len__(self) -> int:
        return len(self._labels)

    def labels(self) -> Tensor:
        """Return the label of every image, [n] int64."""
        return self._labels

    def fetch(self, ids: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Images as the network sees them, [n, C, H, W] float32, and labels [n] int64 (0 without classes)."""
        index = torch.as_tensor(ids, dtype=torch.int64)
        unit = self._pixels(index).float() * (2 / self._levels) - 1  # [n, C, H, W] in [-1, 1]
        return unit * self._scale + self._shift, self._labels[index]

    def to_images(self, x: Tensor) -> Tensor:
        """Return images [n, 3, H, W] uint8: unscaled, clipped, and grey repeated to three channels."""
        return self._preview.pixels(x)

    def _pixels(self, index: Tensor) -> Tensor:
        """Levels of the images at `index` [n], [n, C, H, W] uint8."""
        raise NotImplementedError


class MemorySplit(ImageSplit):
    """A split that is one tensor."""

    def __init__(self, params: DatasetParams, table: Table, *, labelled: bool) -> None:
        labels = torch.from_numpy(table.labels)
        super().__init__(params, labels if labelled else torch.zeros_like(labels), table.levels)
        self._images = torch.from_numpy(table.images)  # [n, C, H, W] uint8

    def _pixels(self, index: Tensor) -> Tensor:
        return self._images.index_select(0, index)


class FileSplit(ImageSplit):
    """A split of image files, decoded on a few threads when first fetched and kept while the memory budget lasts.

    What is kept is never exchanged: an epoch shows every image once, so the last one seen is the last one needed again.
    """

    def __init__(self, params: ImageFilesParams, *, split: Split) -> None:
        self._params = params
        self._source = params.source()
        index = self._source.contents.index
        self._positions = index.positions(split, params.holdout)
        facts = image_facts(self._source, params)
        super().__init__(params, torch.from_numpy(index.labels[self._positions]), levels=255, facts=facts)
        self._kept: dict[int, Tensor] = {}
        self._most_kept = MEMORY_BUDGET // (params.channels * params.size**2)
        self._pool = ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1))

    def keep_no_more(self) -> None:
        self._most_kept = 0

    def _pixels(self, index: Tensor) -> Tensor:
        images = list(self._pool.map(self._image, index.tolist()))
        return torch.stack(images) if images else torch.empty(0, *self.facts.image, dtype=torch.uint8)

    def _image(self, number: int) -> Tensor:
        if number in self._kept:
            return self._kept[number]
        levels, _ = read_image(self._source, int(self._positions[number]), self._params)
        image = torch.from_numpy(levels.copy())
        if len(self._kept) < self._most_kept:
            self._kept[number] = image
        return image
