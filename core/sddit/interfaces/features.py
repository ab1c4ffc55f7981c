"""Define the contract of a feature extractor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, Self, runtime_checkable

if TYPE_CHECKING:
    from torch import Tensor

from sddit.interfaces.params import Params


@dataclass(frozen=True, slots=True)
class ModeOption:
    """An option of a mode of `sddit-run evaluate`. Its value is a path."""

    name: str  # `inception`: the option `--inception`, and the argument `inception` of the mode's function
    metavar: str  # how help shows the value, such as `FILE`
    help: str


@dataclass(frozen=True, slots=True)
class EvaluateMode:
    """A mode of `sddit-run evaluate` that a feature extractor offers. It runs when all its options are given."""

    name: str  # the key of its figures in `--json`; they are written to NAME.json in the run folder
    options: tuple[ModeOption, ...]
    function: str
    """`module:function`, called as `function(samples, device=, progress=, **paths)` with the saved samples of the run,
    a `sddit.data.archives.StoredArray` uint8 [n, H, W, 3], a `torch.device` and a `Progress`. Returns {key: figure} of
    what JSON can hold; None: not measured."""
    heading: str  # printed above the table, a format string over the figures: "{samples} samples against {reference}"
    rows: Mapping[str, str]  # {key of a figure: its title in the table}; a figure that is None is not printed
    reference: str = ""  # the option that takes a file of `sddit-run reference`; empty: none does
    statistics: str = ""
    """`module:function` that computes the statistics of such a file, called as `function(images, device=, **paths)`:
    `images` yields the real images in parts, uint8 [b, 3, H, W], and `paths` are those of the other options. Returns
    the arrays of the file by name."""

    @property
    def statistics_options(self) -> tuple[ModeOption, ...]:
        """The options of `sddit-run reference`; none if the mode computes no statistics."""
        return tuple(option for option in self.options if option.name != self.reference) if self.statistics else ()


class FeatureParams(Params):
    """Settings of a feature extractor for metrics."""

    @property
    def dimensions(self) -> int:
        """Width of a feature vector."""
        raise NotImplementedError

    @property
    def own_figures(self) -> tuple[str, ...]:
        """Names of its further figures: `class_accuracy` of a classifier, and those of a `FigureExtractor`."""
        return ()

    @classmethod
    def evaluate_modes(cls) -> tuple[EvaluateMode, ...]:
        """Return the modes of `sddit-run evaluate` that this extractor offers."""
        return ()

    def fingerprinted(self) -> Self:
        """Return these settings with the hash of each file that they name: `weights` has a key `weights_sha256`.

        The hash is part of the run id, the path is not.
        """
        return self


class FeatureExtractor(Protocol):
    """Map images to vectors, for metrics."""

    title: str  # how figures name it, such as "MobileNetV2"
    dimensions: int

    def features(self, images: Tensor) -> Tensor:
        """Return the features, float32 [n, dimensions], of images, uint8 [n, 3, H, W]."""

    def classes(self, images: Tensor) -> Tensor | None:
        """Return the predicted classes [n] of images, uint8 [n, 3, H, W]; None if it is not a classifier."""


class FigureAccumulator(Protocol):
    """Collect what the figures of an extractor need, from samples that are given in parts."""

    def add(self, images: Tensor) -> None:
        """Take the next samples, uint8 [b, 3, H, W]."""

    def figures(self) -> Mapping[str, float]:
        """Return figures of all samples by name. Those that cannot be measured are omitted."""


@runtime_checkable
class FigureExtractor(FeatureExtractor, Protocol):
    """A feature extractor that also measures figures of its own."""

    def collect_figures(self) -> FigureAccumulator:
        """Return an accumulator for one set of samples."""
