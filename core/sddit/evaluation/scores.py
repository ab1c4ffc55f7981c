"""Score generated images against real ones, each score next to its floor: that of unseen real images.

The reference is the training split. The floor is the held-out split measured against it in the samples' place, at the
same n: a distance falls with n even between equal distributions, so figures at different n do not compare.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sized
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sddit.diffusion.draws import key_of
from sddit.errors import raise_all
from sddit.evaluation.metrics import (
    class_accuracy,
    copied_share,
    density_coverage,
    frechet_distance,
    kid,
    nearest,
    precision_recall,
)
from sddit.interfaces import Dataset, FeatureExtractor, FigureExtractor
from sddit.interfaces.metric_names import TRAINING_METRICS
from sddit.recipes.checks.evaluation_rules import min_images, too_few_images
from sddit.recipes.settings import EvaluateSettings

if TYPE_CHECKING:
    from torch import Tensor

Floats = NDArray[np.floating[Any]]
Integers = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """Figures of one extractor, ready for JSON: `Scores(**scores.to_json()) == scores`.

    `*_floor` is what held-out real images get in the samples' place, at the same n. None: not measured, by a run of an
    earlier version or for want of classes.
    """

    title: str  # of the extractor, such as "MobileNetV2"
    dimensions: int
    training: int  # images of the reference
    n: int  # images of every figure that has a floor
    samples: int  # images of `fd_all`, `class_accuracy` and `copied`
    fd: float
    fd_floor: float
    fd_all: float  # of all samples: compares only with other runs at the same number
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
    copied: float | None = None  # fraction of samples as near to a training image as few real images are
    copied_floor: float | None = None
    class_accuracy: float | None = None  # fraction of samples in which the extractor sees the asked class
    class_accuracy_floor: float | None = None  # the same of held-out real images and their labels
    own: Mapping[str, float] = field(default_factory=dict)  # figures that only this extractor measures, of all samples

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
        """Yield the figures that are followed over a run."""
        for figure in TRAINING_METRICS:
            if (value := getattr(self, figure)) is not None:
                yield figure, value

    def to_json(self) -> dict[str, Any]:
        return {key: value for key, value in asdict(self).items() if key != "own" or value}


@dataclass(frozen=True, slots=True)
class Seen:
    """Features of one extractor on a set of images."""

    features: Floats  # [n, d]
    classes: Integers | None  # [n] the classes it sees, if it is a classifier
    labels: Integers  # [n] the classes they have, or were asked to have


@dataclass(frozen=True)
class Scorer:
    """Scores samples by every extractor. Each real image is read once, however many sets of samples are scored.

    Args:
        train_set, test_set: the training split (the reference) and the held-out split (the floor).
        extractors: by label of the recipe.
        settings: neighbours, kernel subsets and batch are read.
        seed: of the recipe; chooses subsets.
    """

    train_set: Dataset
    test_set: Dataset
    extractors: Mapping[str, FeatureExtractor]
    settings: EvaluateSettings
    seed: int

    def score(self, samples: Tensor, labels: Tensor, *, own: bool = True) -> dict[str, Scores]:
        """Return the scores by extractor.

        Args:
            samples: [n, 3, H, W] uint8, in the order of their seeds.
            labels: [n] int64, the class each was asked to show.
            own: whether to take the figures that only some extractors measure, too.

        Raises:
            SdditError: SD-T906 for a set too small for the statistics, SD-T907 for a non-finite feature.
        """
        sets: dict[str, Sized] = {
            "samples": samples,
            "training images": self.train_set,
            "held-out images": self.test_set,
        }
        refuse_few(sets, self.settings.neighbours)
        generated = see_images(samples, labels, self.extractors, self.settings.batch)
        common = {
            label: scores(
                generated[label],
                reference=self.training[label].features,
                heldout=self.heldout[label],
                title=extractor.title,
                settings=self.settings,
                seed=self.seed,
                num_classes=self.train_set.facts.num_classes,
            )
            for label, extractor in self.extractors.items()
        }
        further = {
            label: extractor.own_figures(samples)
            for label, extractor in self.extractors.items()
            if own and isinstance(extractor, FigureExtractor)
        }
        return {label: replace(one, own=further.get(label, {})) for label, one in common.items()}

    @cached_property
    def training(self) -> dict[str, Seen]:
        """Features of the reference."""
        return see_split(self.train_set, self.extractors, self.settings.batch)

    @cached_property
    def heldout(self) -> dict[str, Seen]:
        """Features of held-out images."""
        return see_split(self.test_set, self.extractors, self.settings.batch)


def scores(
    generated: Seen,
    *,
    reference: Floats,
    heldout: Seen,
    title: str,
    settings: EvaluateSettings,
    seed: int,
    num_classes: int,
) -> Scores:
    """Compare what one extractor made of samples, of the training split and of held-out images."""
    n = min(len(generated.features), len(heldout.features))
    fake = generated.features[:n]
    real = heldout.features[choose(n, len(heldout.features), seed, "heldout")]
    peers = reference[choose(n, len(reference), seed, "training")]  # neighbours compare sets of one size only
    size = min(settings.kid_subset_size, n, len(reference))
    kernel = {"subsets": settings.kid_subsets, "size": size}
    kid_mean, kid_spread = kid(reference, fake, **kernel, rng=_rng(seed, "kid"))
    floor_mean, floor_spread = kid(reference, real, **kernel, rng=_rng(seed, "kid"))
    precision, recall = precision_recall(peers, fake, settings.neighbours)
    precision_floor, recall_floor = precision_recall(peers, real, settings.neighbours)
    density, coverage = density_coverage(peers, fake, settings.neighbours)
    density_floor, coverage_floor = density_coverage(peers, real, settings.neighbours)
    copied, copied_floor = copied_share(*(nearest(seen.features, reference)[1] for seen in (generated, heldout)))
    return Scores(
        title=title,
        dimensions=reference.shape[1],
        training=len(reference),
        n=n,
        samples=len(generated.features),
        fd=frechet_distance(reference, fake),
        fd_floor=frechet_distance(reference, real),
        fd_all=frechet_distance(reference, generated.features),
        kid=kid_mean,
        kid_spread=kid_spread,
        kid_floor=floor_mean,
        kid_floor_spread=floor_spread,
        kid_subsets=settings.kid_subsets,
        kid_subset_size=size,
        neighbours=settings.neighbours,
        precision=precision,
        precision_floor=precision_floor,
        recall=recall,
        recall_floor=recall_floor,
        density=density,
        density_floor=density_floor,
        coverage=coverage,
        coverage_floor=coverage_floor,
        copied=copied,
        copied_floor=copied_floor,
        class_accuracy=_accuracy(generated, num_classes),
        class_accuracy_floor=_accuracy(heldout, num_classes),
    )


def refuse_few(sets: Mapping[str, Sized], neighbours: int) -> None:
    """Raise SdditError (SD-T906) for each set with too few images for the statistics."""
    fix = "use more images, or disable the scores with evaluate.features=[]"
    raise_all(
        too_few_images(name, len(images), neighbours, "evaluate.samples" if name == "samples" else "dataset", fix)
        for name, images in sets.items()
        if len(images) < min_images(neighbours)
    )


def _accuracy(seen: Seen, num_classes: int) -> float | None:
    """Class accuracy over the images that were asked to show a class, or None where that says nothing."""
    asked = seen.labels < num_classes  # the null label asks for none
    if seen.classes is None or num_classes < 2 or not asked.any():
        return None
    return class_accuracy(seen.classes[asked], seen.labels[asked])


def see_split(dataset: Dataset, extractors: Mapping[str, FeatureExtractor], batch: int) -> dict[str, Seen]:
    """Extract the features of a split with each extractor."""

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        for start in range(0, len(dataset), batch):
            x, labels = dataset.fetch(range(start, min(start + batch, len(dataset))))
            yield dataset.to_images(x), labels

    return _see(batches(), extractors)


def see_images(
    images: Tensor, labels: Tensor, extractors: Mapping[str, FeatureExtractor], batch: int
) -> dict[str, Seen]:
    """Extract the features of images with each extractor, uint8 [n, 3, H, W]."""
    parts = range(0, len(images), batch)
    return _see(((images[at : at + batch], labels[at : at + batch]) for at in parts), extractors)


def _see(batches: Iterator[tuple[Tensor, Tensor]], extractors: Mapping[str, FeatureExtractor]) -> dict[str, Seen]:
    """Return one pass over (images uint8 [b, 3, H, W], labels [b]), each extractor looking at every batch."""
    features: dict[str, list[Floats]] = {label: [] for label in extractors}
    classes: dict[str, list[Integers]] = {label: [] for label in extractors}
    labels: list[Integers] = []
    for images, batch_labels in batches:
        labels.append(_numpy(batch_labels))
        for label, extractor in extractors.items():
            features[label].append(_numpy(extractor.features(images)))
            if (seen := extractor.classes(images)) is not None:
                classes[label].append(_numpy(seen))
    asked = np.concatenate(labels)
    return {
        label: Seen(np.concatenate(features[label]), np.concatenate(classes[label]) if classes[label] else None, asked)
        for label in extractors
    }


def _numpy(tensor: Tensor) -> Any:
    return tensor.detach().cpu().numpy()


def choose(n: int, total: int, seed: int, purpose: str) -> Integers:
    """Indices of `n` of `total` images (all of them if there are no more), rising, keyed by seed and purpose."""
    if n >= total:
        return np.arange(total)
    return np.sort(_rng(seed, purpose).choice(total, n, replace=False))


def _rng(seed: int, purpose: str) -> np.random.Generator:
    """Return a generator that is a function of seed and purpose alone."""
    low, high = key_of(seed, f"evaluate/{purpose}")
    return np.random.Generator(np.random.Philox(key=low | high << 32))
