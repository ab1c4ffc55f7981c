"""Score generated images against real ones, each score next to its floor: that of unseen real images.

The reference is the training split. The floor is the score of the held-out split in place of the samples, at the same
n: a distance decreases with n even between equal distributions, so scores at different n cannot be compared.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sized
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sddit.data.undecoded import scores_of_latents
from sddit.diffusion.draws import key_of
from sddit.errors import Problem, SdditError, raise_all
from sddit.evaluation.metrics import (
    ROUNDING,
    copied_fraction,
    density_coverage,
    frechet_distance,
    kid,
    nearest,
    precision_recall,
)
from sddit.interfaces import Dataset, FeatureExtractor, FigureAccumulator, FigureExtractor
from sddit.interfaces.metric_names import TRAINING_METRICS
from sddit.recipes.checks.evaluation_rules import min_images, too_few_images
from sddit.recipes.settings import EvaluateSettings

Floats = NDArray[np.floating[Any]]
Integers = NDArray[np.int64]
LabelledImages = tuple[Tensor, Tensor]
"""Images, uint8 [b, 3, H, W], and their classes, int64 [b]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """Scores of one extractor, ready for JSON: `Scores(**scores.to_json()) == scores`.

    `*_floor` is the score of held-out real images at the same n. None: not measured, by a run of an earlier version or
    because there are no classes.
    """

    title: str  # of the extractor, such as "MobileNetV2"
    dimensions: int
    training: int  # images of the reference
    n: int  # images of every score that has a floor
    samples: int  # images of `fd_all`, `class_accuracy` and `copied`
    fd: float
    fd_floor: float
    fd_all: float  # of all samples: compare it only between runs with the same number
    kid: float  # mean over subsets
    kid_spread: float  # standard deviation over subsets
    kid_floor: float
    kid_floor_spread: float
    kid_subsets: int
    kid_subset_size: int
    neighbours: int  # k of precision, recall, density and coverage
    precision: float
    precision_floor: float
    recall: float
    recall_floor: float
    density: float | None = None  # mean number of real balls around a sample, over k; 1 of equal distributions
    density_floor: float | None = None
    coverage: float | None = None  # fraction of real balls that hold a sample
    coverage_floor: float | None = None
    copied: float | None = None  # fraction of samples as close to a training image as few real images are
    copied_floor: float | None = None
    class_accuracy: float | None = None  # fraction of samples in which the extractor sees the class asked for
    class_accuracy_floor: float | None = None  # the same of held-out real images and their labels
    fd_codec: float | None = None  # of held-out images that were encoded and decoded; None: no codec
    kid_codec: float | None = None
    own: Mapping[str, float] = field(default_factory=dict)  # metrics that only this extractor has, of all samples

    @property
    def fd_name(self) -> str:
        """Name of the distance; never FID."""
        return f"FD-{self.title}"

    @property
    def kid_name(self) -> str:
        return f"KID-{self.title}"

    @property
    def times_floor(self) -> float:
        """The distance as a multiple of its floor."""
        return self.fd / self.fd_floor if self.fd_floor > 0 else float("inf")

    def course(self) -> Iterator[tuple[str, float]]:
        """Yield (name, value) of the metrics that are also scored during training."""
        for figure in TRAINING_METRICS:
            if (value := getattr(self, figure)) is not None:
                yield figure, value

    def to_json(self) -> dict[str, Any]:
        later = ("fd_codec", "kid_codec", "own")  # omitted without a value
        return {key: value for key, value in asdict(self).items() if key not in later or value or value == 0}


@dataclass(frozen=True, slots=True)
class Extracted:
    """Features of one extractor on a set of images."""

    features: Floats  # [n, d]
    classes: Integers | None  # [n] the classes it sees, if it is a classifier
    labels: Integers  # [n] the classes they have, or were asked to have


@dataclass(frozen=True)
class Scorer:
    """Score samples with every extractor. Each real image is read once, for any number of sets of samples.

    Args:
        train_set, test_set: the training split (the reference) and the held-out split (the floor).
        extractors: by label of the recipe.
        settings: neighbours, kernel subsets and batch are read.
        seed: of the recipe; chooses subsets.
        reconstruct: for decoded latents, yields the held-out images after encoding and decoding; takes their number.
    """

    train_set: Dataset
    test_set: Dataset
    extractors: Mapping[str, FeatureExtractor]
    settings: EvaluateSettings
    seed: int
    reconstruct: Callable[[int], Iterable[LabelledImages]] | None = None

    def score(self, samples: Iterable[LabelledImages], count: int, *, own: bool = True) -> dict[str, Scores]:
        """Return the scores by extractor.

        Args:
            samples: in the order of their seeds, with the classes that they were asked to show.
            count: the number of samples.
            own: whether to include the metrics that only some extractors have.

        Raises:
            SdditError: SD-T906 for a set too small for the statistics, SD-T907 for a non-finite feature, SD-T909 for
                features that are the same for all training images.
        """
        real: dict[str, Sized] = {"training images": self.train_set, "held-out images": self.test_set}
        refuse_few({"samples": range(count), **real}, self.settings.neighbours)
        further = self._collect_figures() if own else {}
        generated = extract_features(_added(samples, further.values()), self.extractors, self.settings.batch)
        figures = {label: accumulator.figures() for label, accumulator in further.items()}
        return {label: self._compare(label, generated[label], figures.get(label, {})) for label in self.extractors}

    def _collect_figures(self) -> dict[str, FigureAccumulator]:
        return {label: e.collect_figures() for label, e in self.extractors.items() if isinstance(e, FigureExtractor)}

    @cached_property
    def training(self) -> dict[str, Extracted]:
        """Features of the reference."""
        found = extract_split(self.train_set, self.extractors, self.settings.batch)
        refuse_equal_features({label: extracted.features for label, extracted in found.items()})
        return found

    @cached_property
    def heldout(self) -> dict[str, Extracted]:
        """Features of held-out images."""
        return extract_split(self.test_set, self.extractors, self.settings.batch)

    @cached_property
    def reconstructed(self) -> dict[str, Extracted]:
        """Features of held-out images after encoding and decoding; empty without a codec."""
        if self.reconstruct is None:
            return {}
        return extract_features(self.reconstruct(len(self.test_set)), self.extractors, self.settings.batch)

    def _compare(self, label: str, generated: Extracted, own: Mapping[str, float]) -> Scores:
        """Return the scores of one extractor from its features of samples, the training split and held-out images."""
        settings, heldout, reference = self.settings, self.heldout[label], self.training[label].features
        n = min(len(generated.features), len(heldout.features))
        peers = reference[choose(n, len(reference), self.seed, "training")]  # neighbours compare sets of one size only
        size = min(settings.kid_subset_size, n, len(reference))

        def measure(images: Floats) -> tuple[dict[str, float], float]:
            """Return the metrics of n images, and the standard deviation of their KID."""
            rng = _rng(self.seed, "kid")
            mean, std = kid(reference, images, subsets=settings.kid_subsets, size=size, rng=rng)
            precision, recall = precision_recall(peers, images, settings.neighbours)
            density, coverage = density_coverage(peers, images, settings.neighbours)
            found = {"fd": frechet_distance(reference, images), "kid": mean, "precision": precision, "recall": recall}
            return found | {"density": density, "coverage": coverage}, std

        measured, spread = measure(generated.features[:n])
        chosen = choose(n, len(heldout.features), self.seed, "heldout")
        floors, floor_spread = measure(heldout.features[chosen])
        codec = measure(self.reconstructed[label].features[chosen])[0] if self.reconstructed else {}
        copied, copied_floor = copied_fraction(*(nearest(e.features, reference)[1] for e in (generated, heldout)))
        figures: dict[str, Any] = measured | {f"{name}_floor": value for name, value in floors.items()}
        return Scores(
            title=self.extractors[label].title,
            dimensions=reference.shape[1],
            training=len(reference),
            n=n,
            samples=len(generated.features),
            fd_all=frechet_distance(reference, generated.features),
            kid_spread=spread,
            kid_floor_spread=floor_spread,
            kid_subsets=settings.kid_subsets,
            kid_subset_size=size,
            neighbours=settings.neighbours,
            copied=copied,
            copied_floor=copied_floor,
            class_accuracy=_accuracy(generated, self.train_set.facts.num_classes),
            class_accuracy_floor=_accuracy(heldout, self.train_set.facts.num_classes),
            fd_codec=codec.get("fd"),
            kid_codec=codec.get("kid"),
            own=own,
            **figures,
        )


def refuse_few(sets: Mapping[str, Sized], neighbours: int) -> None:
    """Raise SdditError (SD-T906) for each set with too few images for the statistics."""
    fix = "use more images, or disable the scores with evaluate.features=[]"
    raise_all(
        too_few_images(name, len(images), neighbours, "evaluate.samples" if name == "samples" else "dataset", fix)
        for name, images in sets.items()
        if len(images) < min_images(neighbours)
    )


def refuse_equal_features(reference: Mapping[str, Floats]) -> None:
    """Raise SdditError (SD-T909) for each extractor whose features, [n, d], are the same for all images.

    It sees no images, and every sample would score as perfect.
    """
    what, expect = "all training images have the same features", "features that differ between images"
    fix = "check the weights of this extractor and how it scales images"
    raise_all(
        Problem("SD-T909", what, where=f"features of {label!r}", got=f"{len(rows)} equal rows", expect=expect, fix=fix)
        for label, rows in reference.items()
        if np.max(rows.max(axis=0) - rows.min(axis=0)) <= ROUNDING * max(rows.max(), -rows.min())
    )


def _accuracy(extracted: Extracted, num_classes: int) -> float | None:
    """Return the fraction of images in which the classifier sees the class asked for; None without such classes."""
    asked = extracted.labels < num_classes  # the null label asks for none
    if extracted.classes is None or num_classes < 2 or not asked.any():
        return None
    return float((extracted.classes[asked] == extracted.labels[asked]).mean())


def extract_split(dataset: Dataset, extractors: Mapping[str, FeatureExtractor], batch: int) -> dict[str, Extracted]:
    """Extract the features of a split with each extractor. Raises SD-T912 for latents without a decoder."""
    if not dataset.facts.gives_images:
        raise SdditError(scores_of_latents("dataset", dataset.facts.source))
    ids = range(len(dataset))
    parts = (dataset.fetch(ids[start : start + batch]) for start in ids[::batch])
    return _extract(((dataset.to_images(x), labels) for x, labels in parts), extractors)


def extract_features(
    samples: Iterable[LabelledImages], extractors: Mapping[str, FeatureExtractor], batch: int
) -> dict[str, Extracted]:
    """Extract the features of images with each extractor, `batch` images at once."""
    return _extract(
        (
            part
            for images, labels in samples
            for part in zip(torch.split(images, batch), torch.split(labels, batch), strict=True)
        ),
        extractors,
    )


def _added(samples: Iterable[LabelledImages], accumulators: Collection[FigureAccumulator]) -> Iterator[LabelledImages]:
    """Yield the samples, after giving their images to each accumulator."""
    for images, labels in samples:
        for accumulator in accumulators:
            accumulator.add(images)
        yield images, labels


def _extract(batches: Iterable[LabelledImages], extractors: Mapping[str, FeatureExtractor]) -> dict[str, Extracted]:
    """Extract the features of batches of images in one pass."""
    features, classes, labels = (
        {label: _Rows() for label in extractors},
        {label: _Rows() for label in extractors},
        _Rows(),
    )
    for images, batch_labels in batches:
        labels.add(_numpy(batch_labels))
        for label, extractor in extractors.items():
            features[label].add(_numpy(extractor.features(images)))
            if (seen := extractor.classes(images)) is not None:
                classes[label].add(_numpy(seen))
    return {
        label: Extracted(features[label].all, classes[label].all if len(classes[label].all) else None, labels.all)
        for label in extractors
    }


class _Rows:
    """Rows that are added in parts. Many small arrays between the images would keep the memory of those in use."""

    def __init__(self) -> None:
        self._held: NDArray[Any] = np.empty(0)
        self._count = 0

    def add(self, rows: NDArray[Any]) -> None:
        end = self._count + len(rows)
        if end > len(self._held):
            larger = np.empty((max(end, 2 * len(self._held)), *rows.shape[1:]), rows.dtype)
            larger[: self._count] = self._held[: self._count] if self._count else 0
            self._held = larger
        self._held[self._count : end] = rows
        self._count = end

    @property
    def all(self) -> NDArray[Any]:
        """All rows."""
        return self._held[: self._count]


def _numpy(tensor: Tensor) -> Any:
    return tensor.detach().cpu().numpy()


def choose(n: int, total: int, seed: int, purpose: str) -> Integers:
    """Return `n` of `total` image numbers (all if there are no more), ascending, keyed by seed and purpose."""
    if n >= total:
        return np.arange(total)
    return np.sort(_rng(seed, purpose).choice(total, n, replace=False))


def _rng(seed: int, purpose: str) -> np.random.Generator:
    """Return a generator that is a function of seed and purpose alone."""
    low, high = key_of(seed, f"evaluate/{purpose}")
    return np.random.Generator(np.random.Philox(key=low | high << 32))
