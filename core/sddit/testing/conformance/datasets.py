"""Check what holds for every data set."""

from __future__ import annotations

import torch

from sddit.errors import SdditError
from sddit.interfaces import DataFacts, Dataset, DrawnDataset, LabelledDataset
from sddit.testing.case import Case

MAX_IMAGES = 4096
"""Size of a split up to which mean and standard deviation are compared."""


def examine(case: Case) -> None:
    """Check facts and both splits of a data set."""
    with case.trying("its params were asked for their facts"):
        facts = case.params.facts()
        case.expect(facts == case.params.facts(), "facts() differ from call to call")
        fix = "hash the images, the labels and the split"
        case.expect(bool(facts.fingerprint), "it has no fingerprint", fix=fix)
        one_each = len(facts.mean) == facts.image[0] == len(facts.std)
        case.expect(one_each, "mean and std are not one number per channel")
        if not case.params.holds_images:
            examine_declared(case, facts)
            return
        for split, size in (("train", facts.train_size), ("test", facts.test_size)):
            with case.trying(f"the {split} split was read"):
                examine_split(case, case.build(split=split), split, size, facts)
        with case.trying("mean and standard deviation were compared"):
            examine_moments(case, facts)


def examine_split(case: Case, dataset: Dataset, split: str, size: int, facts: DataFacts) -> None:
    """Check length, shapes and labels, and that an image does not depend on the others that are fetched."""
    case.equal(len(dataset), size, f"the {split} split has another length than facts() says")
    case.expect(dataset.facts == facts, "the data set has other facts than its params")
    if not case.expect(len(dataset) > 0, f"the {split} split is empty"):
        return
    ids = [0, len(dataset) - 1, len(dataset) // 2]
    images, labels = dataset.fetch(ids)
    if not case.shaped(images, (3, *facts.image), "what fetch returns as images"):
        return
    case.expect(images.dtype == torch.float32, "images are not float32", got=images)
    if case.shaped(labels, (3,), "what fetch returns as labels"):
        inside = labels.dtype == torch.int64 and bool(((labels >= 0) & (labels < max(1, facts.num_classes))).all())
        got = f"{labels.tolist()} {labels.dtype}"
        case.expect(inside, "labels are not class numbers", got=got, expect=f"int64 below {facts.num_classes}")
    if isinstance(dataset, LabelledDataset):
        stated = dataset.labels()
        if case.shaped(stated, (len(dataset),), "what labels returns"):
            case.equal(stated[ids].tolist(), labels.tolist(), "labels() differ from those that fetch returns")
    same = torch.equal(dataset.fetch(ids[::-1])[0].flip(0), images)
    case.expect(same, "an image depends on the order in which it is fetched")
    if isinstance(dataset, DrawnDataset):
        examine_spread(case, dataset, ids, images)
    pixels = dataset.to_images(images)
    if case.shaped(pixels, (3, 3, *pixels.shape[2:]), "what to_images returns"):
        case.expect(pixels.dtype == torch.uint8, "to_images does not give uint8", got=pixels)


def examine_declared(case: Case, facts: DataFacts) -> None:
    """Check that a data set without images can show generated ones but returns none."""
    with case.trying("it was built without images"):
        dataset = case.build(split="test")
        case.expect(dataset.facts == facts, "the data set has other facts than its params")
        pixels = dataset.to_images(torch.zeros(2, *facts.image))
        case.shaped(pixels, (2, 3, *pixels.shape[2:]), "what to_images returns")
        try:
            dataset.fetch([0])
        except SdditError:
            return
        case.add("it says that it holds no images, and gives one", fix="raise SdditError in fetch")


def examine_spread(case: Case, dataset: DrawnDataset, ids: list[int], images: torch.Tensor) -> None:
    """Check that standard deviations are not negative, and do not depend on the others that are fetched."""
    spread = dataset.spread(ids)
    if case.shaped(spread, tuple(images.shape), "what spread returns"):
        case.expect(bool((spread >= 0).all()), "a standard deviation is negative, or not a number")
        same = torch.equal(dataset.spread(ids[::-1]).flip(0), spread)
        case.expect(same, "a spread depends on the order in which it is fetched")


def examine_moments(case: Case, facts: DataFacts) -> None:
    """Check that the stated mean and standard deviation are those of the training images in [-1, 1]."""
    if case.params.normalize != "range" or facts.train_size > MAX_IMAGES:
        return
    dataset = case.build(split="train")
    ids = range(facts.train_size)
    images = dataset.fetch(ids)[0].double()
    mean, std = images.mean(dim=(0, 2, 3)), images.std(dim=(0, 2, 3))
    if isinstance(dataset, DrawnDataset):  # the standard deviation of what is drawn
        std = (std**2 + dataset.spread(ids).double().square().mean(dim=(0, 2, 3))).sqrt()
    close = torch.allclose(mean, mean.new_tensor(facts.mean), atol=0.02)
    close = close and torch.allclose(std, std.new_tensor(facts.std), rtol=0.02)
    case.expect(
        close,
        "mean and std are not those of the training images",
        got=f"{facts.mean}, {facts.std}",
        expect=f"{mean.tolist()}, {std.tolist()}",
    )
