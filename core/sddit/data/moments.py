"""Compute the exact mean and standard deviation of grey levels. No torch."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray


class PixelMoments:
    """Histogram per channel: the results do not depend on the order of images, and no rounding accumulates."""

    def __init__(self, channels: int) -> None:
        self.counts = np.zeros((channels, 256), dtype=np.int64)

    def add(self, images: NDArray[np.uint8]) -> None:
        """Add images [n, C, H, W]."""
        for start in range(0, len(images), 1024):  # bincount widens what it counts to 64 bits
            for counts, channel in zip(self.counts, images[start : start + 1024].swapaxes(0, 1), strict=True):
                counts += np.bincount(channel.ravel(), minlength=256)

    def of_unit_range(self, levels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Return mean and standard deviation per channel after scaling 0..levels to [-1, 1]."""
        means, stds = [], []
        level = np.arange(256)
        for counts in self.counts:
            n, total, squares = (int(value) for value in (counts.sum(), counts @ level, counts @ level**2))
            means.append(2 * total / (levels * n) - 1)
            stds.append(2 * math.sqrt(n * squares - total * total) / (levels * n))  # n^2 var, in integers
        return tuple(means), tuple(stds)
