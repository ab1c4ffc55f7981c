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
from sddit_standard.datasets.fashion import fashion_table
from sddit_standard.datasets.folder import list_images, read_image

if TYPE_CHECKING:
    from sddit_standard.datasets.params import DigitsParams, FashionParams, FolderParams

MEMORY_BUDGET = 2**30
"""Bytes of decoded images that one split of a folder keeps. Past it, the other images are decoded at each fetch."""


def digits(params: DigitsParams, *, split: Split) -> MemorySplit:
    """Handwritten digits."""
    return MemorySplit(params, embedded_table("digits", split), labelled=params.labels)


def fashion(params: FashionParams, *, split: Split) -> MemorySplit:
    """Fashion-MNIST."""
    return MemorySplit(params, fashion_table(params.source, split), labelled=params.labels)


def folder(params: FolderParams, *, split: Split) -> FolderSplit:
    """Return the user's own images."""
    return FolderSplit(params, split=split)


class ImageSplit:
    """One split of a data set of images with whole-numbered levels 0..levels."""

    def __init__(self, params: DatasetParams, labels: Tensor, levels: int) -> None:
        self.facts: DataFacts = params.facts()
        self._labels = labels  # [n] int64
        self._levels = levels
        seen = scaling(params, self.facts)
        self._scale, self._shift = over_image(seen.scale), over_image(seen.shift)
        self._preview = Preview(params, self.facts)

    def __len__(self) -> int:
        return len(self._labels)

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


class FolderSplit(ImageSplit):
    """A split of image files, decoded on a few threads when first fetched and kept while the memory budget lasts.

    What is kept is never exchanged: an epoch shows every image once, so the last one seen is the last one needed again.
    """

    def __init__(self, params: FolderParams, *, split: Split) -> None:
        self._params = params
        self._listing = list_images(params)
        self._files = self._listing.of(split)
        super().__init__(params, torch.tensor([file.label for file in self._files], dtype=torch.int64), levels=255)
        self._kept: dict[int, Tensor] = {}
        self._most_kept = MEMORY_BUDGET // (params.channels * params.size**2)
        self._pool = ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1))

    def keep_no_more(self) -> None:
        self._most_kept = 0

    def _pixels(self, index: Tensor) -> Tensor:
        images = list(self._pool.map(self._image, index.tolist()))
        return torch.stack(images) if images else torch.empty(0, *self.facts.image, dtype=torch.uint8)

    def _image(self, position: int) -> Tensor:
        if position in self._kept:
            return self._kept[position]
        levels, _ = read_image(self._listing, self._files[position], self._params)
        image = torch.from_numpy(levels.copy())
        if len(self._kept) < self._most_kept:
            self._kept[position] = image
        return image
