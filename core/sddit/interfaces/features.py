"""Define the contract of a feature extractor."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol, Self, runtime_checkable

if TYPE_CHECKING:
    from torch import Tensor

from sddit.interfaces.params import Params


class FeatureParams(Params):
    """Face of a feature extractor for metrics."""

    @property
    def dimensions(self) -> int:
        """Width of a feature vector."""
        raise NotImplementedError

    @property
    def own_figures(self) -> tuple[str, ...]:
        """Names of the figures it measures besides the common ones: `class_accuracy` if it knows classes, and a
        `FigureExtractor`'s own."""
        return ()

    def fingerprinted(self) -> Self:
        """These settings with the hash of each file that they name: `weights` goes with a key `weights_sha256`.

        The hash is part of the run id, the path beside it is not.
        """
        return self


class FeatureExtractor(Protocol):
    """Images to vectors, for metrics. `classes` is None where the extractor is no classifier."""

    title: str  # how figures name it, such as "MobileNetV2"
    dimensions: int

    def features(self, images: Tensor) -> Tensor:
        """uint8 [n, 3, H, W] -> float32 [n, dimensions]."""
        ...

    def classes(self, images: Tensor) -> Tensor | None:
        """uint8 [n, 3, H, W] -> the class it sees [n], or None."""
        ...


@runtime_checkable
class FigureExtractor(FeatureExtractor, Protocol):
    """A feature extractor that measures figures of its own besides."""

    def own_figures(self, images: Tensor) -> Mapping[str, float]:
        """All samples, uint8 [n, 3, H, W] -> figures by name. One that cannot be measured is left out."""
        ...
