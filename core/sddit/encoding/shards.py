"""Encode the images of one shard after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sddit.data.latent_statistics import Layout, MomentStatistics
from sddit.data.latent_writing import write_shard
from sddit.data.latents import VALUES_AT_ONCE
from sddit.encoding.shard_plan import EncodingPlan, ShardRecord, write_record
from sddit.errors import error
from sddit.interfaces import Codec, CodecParams, Dataset, DatasetParams, KeepingDataset, Selected, Split

LAYOUT: Layout = "mean+std"
PIXELS_AT_ONCE = 2**22  # of images in memory


@contextmanager
def one_thread(device: torch.device) -> Iterator[None]:
    """Compute on one thread of a CPU: the last bits of a convolution depend on their number."""
    before = torch.get_num_threads()
    try:
        if device.type == "cpu":
            torch.set_num_threads(1)
        yield
    finally:
        torch.set_num_threads(before)


class SourceImages:
    """The images of a data set, numbered from its training images on to the held-out ones."""

    def __init__(self, chosen: Selected[DatasetParams], plan: EncodingPlan) -> None:
        sizes = dict(zip(get_args(Split), (plan.images.train, plan.images.test), strict=True))
        self._splits: list[Dataset] = [chosen.build(split=split) for split, size in sizes.items() if size]
        for dataset in self._splits:
            refuse_changed(dataset.facts.fingerprint, plan, dataset.facts.source)
            if isinstance(dataset, KeepingDataset):
                dataset.keep_no_more()
        _, height, width = dataset.facts.image
        self.at_once = max(1, PIXELS_AT_ONCE // (height * width))

    def batches(self, numbers: range) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield images, uint8 [n, 3, H, W], and their labels [n] int64."""
        first = 0
        for dataset in self._splits:
            inside = range(max(numbers.start - first, 0), min(numbers.stop - first, len(dataset)))
            for start in inside[:: self.at_once]:
                x, labels = dataset.fetch(range(start, min(start + self.at_once, inside.stop)))
                yield dataset.to_images(x), labels
            first += len(dataset)

    def pick(self, numbers: list[int]) -> Tensor:
        """Return some images, uint8 [n, 3, H, W]."""
        return torch.cat([images for number in numbers for images, _ in self.batches(range(number, number + 1))])


def refuse_changed(fingerprint: str, plan: EncodingPlan, source: str) -> None:
    """Raise SD-D354 if the images are not those that the plan was made for."""
    if fingerprint != plan.images.fingerprint:
        raise error(
            "SD-D354",
            "the images changed while they were encoded",
            where=source,
            got=f"fingerprint {fingerprint[:12]}",
            expect=f"fingerprint {plan.images.fingerprint[:12]}",
            fix="restore the images and rerun, or encode them as they are into another folder",
        )


class ShardEncoder:
    """Encodes the shards of a plan. The bytes of a shard depend on nothing but the plan."""

    def __init__(
        self, plan: EncodingPlan, dataset: Selected[DatasetParams], codec: Selected[CodecParams], device: torch.device
    ) -> None:
        self._plan, self._images = plan, SourceImages(dataset, plan)
        self._codec: Codec = codec.build(device=device)

    def encode(self, root: Path, shard: int, advance: Callable[[int], None]) -> ShardRecord:
        """Encode and write a shard and its record. `advance` is called with the number of images of each part."""
        moments, labels = [], []
        for images, classes in self._images.batches(self._plan.images_of(shard)):
            moments.append(self._moments(images))
            labels.append(classes.repeat_interleave(2) if self._plan.flip == "both" else classes)
            advance(len(images))
        rows = np.concatenate(moments)
        if not np.isfinite(rows).all():
            raise error(
                "SD-D308",
                "the codec returns NaN, infinity or numbers beyond float16",
                where=f"shard {shard} of {root}",
                got=f"images {self._plan.images_of(shard).start:,} to {self._plan.images_of(shard).stop - 1:,}",
                fix="check the weights of the codec, and codec.pixel_range",
            )
        written = write_shard(root, shard, rows, torch.cat(labels).numpy().astype(np.int64))
        record = ShardRecord(shard=written, statistics=statistics_of(rows).to_json())
        write_record(root, shard, record)
        return record

    def _moments(self, images: Tensor) -> NDArray[Any]:
        """Return means and standard deviations, float16 [n, 2C, h, w]; with mirror images, each after its image."""
        found = [torch.cat(self._codec.encode(images), dim=1)]
        if self._plan.flip == "both":
            found.append(torch.cat(self._codec.encode(images.flip(3)), dim=1))
        rows = torch.stack(found, dim=1).flatten(0, 1)  # [n, 1 or 2, 2C, h, w] -> [rows, 2C, h, w]
        channels, height, width = self._plan.shape
        if tuple(rows.shape[1:]) != (2 * channels, height, width):
            what, expect = "the codec returns latents of another shape than it states", f"{self._plan.shape}"
            got = f"({rows.shape[1] // 2}, {rows.shape[2]}, {rows.shape[3]})"
            raise error("SD-D353", what, where=self._plan.codec.name, got=got, expect=expect)
        moments: NDArray[Any] = rows.half().contiguous().numpy()
        return moments


def statistics_of(moments: NDArray[Any]) -> MomentStatistics:
    """Return the statistics of moments [n, 2C, h, w], in parts of one size: in float64, all are four times as large."""
    statistics = MomentStatistics()
    at_once = max(1, VALUES_AT_ONCE // prod(moments.shape[1:]))
    for start in range(0, len(moments), at_once):
        statistics.add(moments[start : start + at_once], LAYOUT)
    return statistics
