"""Fit a linear map from latents to colours, for previews of latents without their decoder. No torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sddit.interfaces import ColourMap

Array = NDArray[np.float64]


@dataclass(slots=True)
class _Sums:
    """Sums over places of images: all that a least-squares fit and its error need."""

    inputs: Array  # [C + 1, C + 1] of products of latents, with a 1 as the last
    products: Array  # [C + 1, 3] of latents with colours
    squares: Array = field(default_factory=lambda: np.zeros(3))  # of colours

    def add(self, latents: Array, colours: Array) -> None:
        """Add rows of latents with a 1, [n, C + 1], and their colours, [n, 3]."""
        self.inputs += latents.T @ latents
        self.products += latents.T @ colours
        self.squares += (colours**2).sum(axis=0)

    def explained(self, weights: Array) -> Array:
        """Return the fraction of the variance of each colour that weights [C + 1, 3] explain; 0 without variance."""
        error = (
            self.squares - 2 * (weights * self.products).sum(axis=0) + (weights * (self.inputs @ weights)).sum(axis=0)
        )
        total = self.squares - self.products[-1] ** 2 / max(self.inputs[-1, -1], 1.0)
        flat = total <= 1e-9 * np.maximum(self.squares, 1e-30)
        return np.where(flat, 0.0, 1 - error / np.where(flat, 1.0, total))


class ColourFit:
    """Least squares from latents to mean colours, in one pass over a data set.

    Of four images in a row, two are fitted and two measure what the map explains. An image and its mirror image, which
    follow each other, are never on both sides.
    """

    def __init__(self, channels: int, factor: int) -> None:
        self._factor = factor
        self._seen = 0
        self._sums = [_Sums(np.zeros((channels + 1,) * 2), np.zeros((channels + 1, 3))) for _ in range(2)]

    def add(self, latents: NDArray[Any], images: NDArray[np.uint8]) -> None:
        """Add latents [n, C, h, w] as the encoder returns them, and their images, uint8 [n, 3, H, W]."""
        count, channels, height, width = latents.shape
        squares = images.reshape(count, 3, height, self._factor, width, self._factor).astype(np.float64)
        colours = (squares / 255).mean(axis=(3, 5)).transpose(0, 2, 3, 1)  # [n, h, w, 3]
        rows = np.ones((count, height, width, channels + 1))
        rows[..., :channels] = latents.transpose(0, 2, 3, 1)
        held_out = (self._seen + np.arange(count)) // 2 % 2
        for side, sums in enumerate(self._sums):
            chosen = held_out == side
            sums.add(rows[chosen].reshape(-1, channels + 1), colours[chosen].reshape(-1, 3))
        self._seen += count

    def result(self) -> ColourMap | None:
        """Return the map; None for fewer than three images: none would measure it."""
        fitted, held_out = self._sums
        if self._seen < 3:
            return None
        weights: Array = np.linalg.lstsq(fitted.inputs, fitted.products, rcond=1e-10)[0].astype(
            np.float64
        )  # [C + 1, 3]
        return ColourMap(
            factor=self._factor,
            weights=tuple(map(tuple, weights[:-1].T.tolist())),
            offset=tuple(weights[-1].tolist()),
            r2=tuple(held_out.explained(weights).tolist()),
        )
