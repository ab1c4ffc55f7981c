"""Rules that hold for every data set. The conformance kit and the first step of a run check them alike."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sddit.data.stated_facts import facts_problems
from sddit.interfaces import DataFacts, Dataset, DatasetParams, DrawnDataset, LabelledDataset, Split
from sddit.training.findings import Findings, same_bits

Build = Callable[[Split], Dataset]

SAMPLED = 512
"""Maximum number of images of a split that are examined, evenly spread over it."""
STANDARD_ERRORS = 5
"""How far a stated mean may be from that of a sample of the images."""
MAX_REBUILT = 2**26
"""Numbers in a split up to which it is built again, to compare the two: it may be kept in memory."""

METHODS = {
    "__len__": "def __len__(self): return the number of images",
    "fetch": "def fetch(self, ids): return images, labels",
    "to_images": "def to_images(self, x): return uint8 images [n, 3, H, W]",
}
OPTIONAL_METHODS = ("labels", "spread", "keep_no_more")
LINE = "correct the line above"
SCALE = "scale pixels to [-1, 1]: images.float() / 127.5 - 1"


def checked_facts(findings: Findings, params: DatasetParams) -> DataFacts | None:
    """Return the facts that a data set states, if they can be used, and note what is wrong with them."""
    with findings.trying("its params were asked for their facts", LINE):
        facts = params.facts()
        problems = list(facts_problems(facts, findings.name))
        findings.problems += problems
        if problems:
            return None
        again = params.facts()
        changed = [name for name in DataFacts.__slots__ if getattr(facts, name) != getattr(again, name)]
        fix = "compute them of the settings and the files alone, without random numbers or the time"
        if findings.expect(not changed, "facts() differ from call to call", got=", ".join(changed), fix=fix):
            return facts
    return None


def check_splits(
    findings: Findings, params: DatasetParams, facts: DataFacts, build: Build, train: Dataset | None = None
) -> None:
    """Check both splits: their methods, what they return, and that they hold different images.

    `train` is the training split if it is built already. It is built once more, unless it is large.
    """
    with findings.trying("the train split was read", LINE):
        train = train or _built(findings, "train", build)
        if not check_split(findings, train, "train", facts):
            return
        if facts.train_size * _size(facts) <= MAX_REBUILT:
            check_rebuilt(findings, train, _built(findings, "train", build))
        if findings.problems:
            return  # what follows of them
        check_values(findings, params, train, facts)
        with findings.trying("the test split was read", LINE):
            test = _built(findings, "test", build)
            if check_split(findings, test, "test", facts):
                check_separate(findings, train, test)


def _built(findings: Findings, split: Split, build: Build) -> Dataset:
    with findings.no_global_randomness(f"building the {split} split"):
        return build(split)


def _size(facts: DataFacts) -> int:
    channels, height, width = facts.image
    return channels * height * width


def check_split(findings: Findings, dataset: Any, split: Split, facts: DataFacts) -> bool:
    """Check methods, length and a few images of a split. Returns whether its images can be examined further."""
    if not check_methods(findings, dataset):
        return False
    size, count = facts.train_size if split == "train" else facts.test_size, len(dataset)
    fix = f"state {split}_size={count}, or return {size} images for split={split!r}"
    what = f"the {split} split has another length than facts() says"
    if not findings.expect(count == size, what, got=count, expect=size, fix=fix):
        return False
    fix = "self.facts = params.facts() in __init__"
    findings.expect(dataset.facts == facts, "the data set has other facts than its params", fix=fix)
    if count == 0:
        return findings.expect(split != "train", "the train split is empty", fix="return images for split='train'")
    ids = [0, count - 1, count // 2]
    with findings.no_global_randomness("fetch"):
        found = dataset.fetch(ids)
        if not check_fetched(findings, found, len(ids), facts):
            return False
        images, labels = found[0].clone(), found[1].clone()
        if not check_repeated(findings, dataset, ids, images, labels):
            return False
    check_labels_method(findings, dataset, facts, ids, labels)
    if isinstance(dataset, DrawnDataset):
        check_spread(findings, dataset, ids, images)
    check_converted(findings, dataset, images)
    return True


def check_methods(findings: Findings, dataset: Any) -> bool:
    """Check that a data set has its facts and the methods of its contract."""
    known = len(findings.problems)
    for name, fix in METHODS.items():
        findings.expect(callable(getattr(dataset, name, None)), f"it has no method {name}", fix=fix)
    fix = "self.facts = params.facts() in __init__"
    findings.expect(hasattr(dataset, "facts"), "it has no attribute facts", fix=fix)
    for name in OPTIONAL_METHODS:
        value = getattr(dataset, name, None)
        what = f"{name} is {type(value).__name__}, not a method"
        fix = f"rename the attribute, such as to self._{name}: in a data set, {name} is a method"
        findings.expect(value is None or callable(value), what, fix=fix)
    return len(findings.problems) == known


def check_fetched(findings: Findings, found: Any, count: int, facts: DataFacts) -> bool:
    """Check type, shape, dtype and range of what fetch returns for `count` ids."""
    if not isinstance(found, tuple | list) or len(found) != 2:
        return findings.expect(
            False,
            "fetch does not return images and labels",
            got=found if isinstance(found, Tensor) else type(found).__name__,
            expect="(images, labels)",
            fix="end fetch with  return images, labels",
        )
    images, labels = found
    if not findings.of_shape(
        images, (count, *facts.image), "what fetch returns as images", shape_fix(images, count, facts.image)
    ):
        return False
    if not images.is_floating_point():
        return findings.expect(False, "images are not float32", got=images, expect="float32", fix=SCALE)
    fix = "images.float()"
    findings.expect(images.dtype == torch.float32, "images are not float32", got=images, expect="float32", fix=fix)
    fix = "return images.detach()"
    findings.expect(not images.requires_grad, "images require a gradient", fix=fix)
    fix = "replace these values, or leave the images out"
    return findings.finite(images, "what fetch returns as images", fix=fix) and check_labels(
        findings, labels, count, facts
    )


def shape_fix(images: Any, count: int, image: tuple[int, int, int]) -> str:
    """Return how to give images the shape (count, C, H, W)."""
    if not isinstance(images, Tensor):
        return "return a tensor: torch.as_tensor(images)"
    channels, height, width = image
    given = tuple(images.shape)
    if given == (count, height, width, channels):
        return "images.permute(0, 3, 1, 2): channels come before height and width"
    if given == (count, height, width):
        return "images[:, None]: images have a dimension of channels"
    if given[:1] != (count,):
        return "return one image for each of the ids"
    return f"state image={given[1:]} in facts(), or convert the images"


def check_labels(findings: Findings, labels: Any, count: int, facts: DataFacts) -> bool:
    """Check shape, dtype and range of the labels that fetch returns."""
    if not isinstance(labels, Tensor):
        fix = "torch.as_tensor(labels)"
    elif labels.shape == (count, facts.num_classes):
        fix = "labels.argmax(dim=1): labels are class numbers"
    else:
        fix = "return one class number for each of the ids"
    if not findings.of_shape(labels, (count,), "what fetch returns as labels", fix):
        return False
    return check_class_numbers(findings, labels, facts)


def check_class_numbers(findings: Findings, labels: Tensor, facts: DataFacts) -> bool:
    """Check dtype and range of labels."""
    if labels.dtype != torch.int64:
        what = "labels are not int64"
        return findings.expect(False, what, got=labels, expect="int64", fix="labels.long()")
    classes = max(1, facts.num_classes)
    low, high = int(labels.min()), int(labels.max())
    if facts.num_classes == 0:
        fix = "state class_names in facts(), or return zeros for images without classes"
    elif low == 1 and high == classes:
        fix = "labels - 1: class numbers start at 0"
    else:
        fix = f"class_names in facts() has {classes} names: state all classes, or leave images without one out"
    expect = f"0 to {classes - 1}"
    return findings.expect(
        0 <= low <= high < classes, "labels are not class numbers", got=f"{low} to {high}", expect=expect, fix=fix
    )


def check_repeated(findings: Findings, dataset: Dataset, ids: list[int], images: Tensor, labels: Tensor) -> bool:
    """Check that fetch gives the same for the same ids, in any order."""
    again, other = dataset.fetch(ids)
    fix = "return each image without random changes: a run that resumes reads it again"
    if not findings.expect(
        same_bits(again, images) and same_bits(other, labels), "fetch gives other images for the same ids", fix=fix
    ):
        return False
    turned, other = dataset.fetch(ids[::-1])
    same = same_bits(turned.flip(0), images) and same_bits(other.flip(0), labels)
    fix = "compute each image of its id alone, not of its place in the list"
    return findings.expect(same, "an image depends on the order in which it is fetched", fix=fix)


def check_labels_method(findings: Findings, dataset: Dataset, facts: DataFacts, ids: list[int], labels: Tensor) -> None:
    """Check what the method labels returns, if there is one."""
    if not isinstance(dataset, LabelledDataset):
        return
    stated, fix = dataset.labels(), "return the label of every image, in the order of the ids"
    if findings.of_shape(stated, (len(dataset),), "what labels returns", fix) and check_class_numbers(
        findings, stated, facts
    ):
        findings.equal(stated[ids].tolist(), labels.tolist(), "labels() differ from those that fetch returns", fix)


def check_spread(findings: Findings, dataset: DrawnDataset, ids: list[int], images: Tensor) -> None:
    """Check that standard deviations are not negative, and do not depend on the others that are fetched."""
    spread = dataset.spread(ids)
    if findings.shaped(spread, tuple(images.shape), "what spread returns"):
        fix = "return standard deviations, such as (0.5 * log_variance).exp()"
        findings.expect(bool((spread >= 0).all()), "a standard deviation is negative", fix=fix)
        same = torch.equal(dataset.spread(ids[::-1]).flip(0), spread)
        findings.expect(same, "a spread depends on the order in which it is fetched")


def check_converted(findings: Findings, dataset: Dataset, images: Tensor) -> None:
    """Check what to_images returns, and that it does not change its input."""
    count, given = len(images), 2 * images  # what is generated may be out of range
    with findings.unchanged(
        lambda: {"x": given}, "to_images changed what it was given", "work on a copy, such as x.clamp(-1, 1)"
    ):
        pixels = dataset.to_images(given)
    what, shape = "what to_images returns", (count, 3, *images.shape[2:])
    if not isinstance(pixels, Tensor):
        findings.add(f"{what} is not a tensor", got=type(pixels).__name__, fix="return uint8 images [n, 3, H, W]")
        return
    if pixels.ndim == 4:
        shape = (count, 3, *pixels.shape[2:])  # those of latents are larger
    fix = "repeat grey images: pixels.expand(-1, 3, -1, -1)" if pixels.shape[1:2] == (1,) else "[n, 3, H, W]"
    if pixels.shape[-1:] == (3,):
        fix = "pixels.permute(0, 3, 1, 2): channels come before height and width"
    if findings.of_shape(pixels, shape, what, fix):
        fix = "pixels.round().to(torch.uint8), from 0 to 255"
        findings.expect(pixels.dtype == torch.uint8, "to_images does not give uint8", got=pixels, fix=fix)


def check_rebuilt(findings: Findings, first: Dataset, second: Dataset) -> None:
    """Check that a split that is built twice holds the same images."""
    ids = [0, len(first) - 1]
    same = len(first) == len(second) and all(map(torch.equal, first.fetch(ids), second.fetch(ids)))
    fix = "seed what it draws from its settings: torch.Generator().manual_seed(params.seed)"
    findings.expect(same, "the train split holds other images when it is built again", fix=fix)


def check_values(findings: Findings, params: DatasetParams, dataset: Dataset, facts: DataFacts) -> None:
    """Check the values of images and labels over the whole split: finite, in range, of the stated mean and std."""
    places = torch.linspace(0, len(dataset) - 1, min(SAMPLED, len(dataset)), dtype=torch.float64)
    ids = places.round().long().tolist()
    images, labels = dataset.fetch(ids)
    broken = [id for id, image in zip(ids, images, strict=True) if not bool(image.isfinite().all())]
    if broken:
        got = f"NaN or infinity in image {', '.join(map(str, broken[:8]))}"
        fix = "replace these values, or leave the images out"
        findings.add("some images are not finite", got=got, fix=fix)
    elif check_class_numbers(findings, labels, facts) and params.normalize == "range":
        spread = dataset.spread(ids) if isinstance(dataset, DrawnDataset) else torch.zeros_like(images)
        check_moments(findings, images.double(), spread.double(), facts, whole=len(ids) == len(dataset))


def check_moments(findings: Findings, images: Tensor, spread: Tensor, facts: DataFacts, *, whole: bool) -> None:
    """Check that the stated mean and standard deviation are those of the images, up to the error of a sample."""
    means = images.mean(dim=(2, 3))  # [n, C]
    squares = (images.square() + spread.square()).mean(dim=(2, 3))
    mean, stated = means.mean(dim=0), torch.tensor(facts.mean)  # [C]
    variance, stated_variance = squares.mean(dim=0) - mean.square(), torch.tensor(facts.std).square()
    scale = 0.0 if whole else STANDARD_ERRORS / len(images) ** 0.5
    near_mean = (mean - stated).abs() <= 0.02 + scale * means.std(dim=0, correction=0)
    allowed = 0.04 * stated_variance + 1e-6 + scale * squares.std(dim=0, correction=0)
    close = bool(near_mean.all()) and bool(((variance - stated_variance).abs() <= allowed).all())
    std = variance.clamp(min=0).sqrt()
    pixels = bool(images.min() >= 0) and not facts.is_latent
    fix = "state these in facts()"
    if pixels and images.max() > 1.5:
        fix = SCALE
    elif pixels and images.max() <= 1:
        fix = "scale pixels to [-1, 1]: 2 * images - 1; if they are, state these in facts()"
    elif std.max() > 2 and not facts.is_latent:
        fix = "scale the images to [-1, 1], or state is_latent=True in facts()"
    findings.expect(
        close,
        "mean and std are not those of the training images",
        got=f"mean={_listed(facts.mean)}, std={_listed(facts.std)}",
        expect=f"mean={_listed(mean.tolist())}, std={_listed(std.tolist())}",
        fix=fix,
    )


def _listed(values: tuple[float, ...] | list[float]) -> str:
    """Return numbers as a tuple of four digits."""
    return f"({', '.join(f'{value:.4g}' for value in values)}{',' * (len(values) == 1)})"


def check_separate(findings: Findings, train: Dataset, test: Dataset) -> None:
    """Check that the test split is not the beginning or the end of the training split."""
    count = min(16, len(train), len(test))
    images = test.fetch(range(count))[0] if count > 1 else torch.zeros(0)
    if (
        count < 2 or len({tuple(image) for image in images.flatten(1).tolist()}) < count
    ):  # equal images are found in any split
        return
    for first in sorted({0, max(0, len(train) - len(test))}):
        same = len(train) >= first + count and torch.equal(train.fetch(range(first, first + count))[0], images)
        got = f"images 0 to {count - 1} of test are {first} to {first + count - 1} of train"
        fix = "return held-out images for split='test'; if there are none, state test_size=0"
        findings.expect(not same, "the test split holds images of the training split", got=got, fix=fix)
