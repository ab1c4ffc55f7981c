"""Check what holds for every data set."""

from __future__ import annotations

import torch

from sddit.errors import SdditError
from sddit.interfaces import DataFacts, Dataset, DrawnDataset
from sddit.testing import fixtures as things
from sddit.testing.kit import Case, Findings

SOME = 4096
"""Images that are read to compare mean and standard deviation."""


def examine(case: Case, findings: Findings) -> None:
    """Try both splits of a data set."""
    with findings.trying("its params were asked for their facts"):
        facts = case.params.facts()
        findings.expect(facts == case.params.facts(), "facts() differ from call to call")
        findings.expect(
            bool(facts.fingerprint), "it has no fingerprint", fix="hash the images, the labels and the split"
        )
        channels = facts.image[0]
        findings.expect(len(facts.mean) == channels == len(facts.std), "mean and std are not one number a channel")
        if not case.params.holds_images:
            examine_declared(case, facts, findings)
            return
        for split, size in (("train", facts.train_size), ("test", facts.test_size)):
            with findings.trying(f"the {split} split was read"):
                examine_split(case.build(split=split), split, size, facts, findings)
        with findings.trying("mean and standard deviation were compared"):
            examine_moments(case, facts, findings)


def examine_split(dataset: Dataset, split: str, size: int, facts: DataFacts, findings: Findings) -> None:
    """Length, shapes, labels, and that an image is the same whenever it is asked for."""
    findings.expect(
        len(dataset) == size,
        f"the {split} split has another length than facts() says",
        got=str(len(dataset)),
        expect=str(size),
    )
    findings.expect(dataset.facts == facts, "the data set has other facts than its params")
    if not findings.expect(len(dataset) > 0, f"the {split} split is empty"):
        return
    ids = [0, len(dataset) - 1, len(dataset) // 2]
    images, labels = dataset.fetch(ids)
    if not things.is_shaped(findings, images, (3, *facts.image), "fetch gives images that"):
        return
    findings.expect(images.dtype == torch.float32, "images are not float32", got=things.shape_of(images))
    if things.is_shaped(findings, labels, (3,), "fetch gives labels that"):
        inside = labels.dtype == torch.int64 and bool(((labels >= 0) & (labels < max(1, facts.num_classes))).all())
        findings.expect(
            inside,
            "labels are not class numbers",
            got=f"{labels.tolist()} {labels.dtype}",
            expect=f"int64 below {facts.num_classes}",
        )
    turned, _ = dataset.fetch(ids[::-1])
    findings.expect(torch.equal(turned.flip(0), images), "an image depends on the order in which it is fetched")
    if isinstance(dataset, DrawnDataset):
        examine_spread(dataset, ids, images, findings)
    seen = dataset.to_images(images)
    if things.is_shaped(findings, seen, (3, 3, *seen.shape[2:]), "to_images gives what"):
        findings.expect(seen.dtype == torch.uint8, "to_images does not give uint8", got=things.shape_of(seen))


def examine_declared(case: Case, facts: DataFacts, findings: Findings) -> None:
    """Check that a data set without images can show generated ones but returns none."""
    with findings.trying("it was built without images"):
        dataset = case.build(split="test")
        findings.expect(dataset.facts == facts, "the data set has other facts than its params")
        seen = dataset.to_images(torch.zeros(2, *facts.image))
        things.is_shaped(findings, seen, (2, 3, *seen.shape[2:]), "to_images gives what")
        try:
            dataset.fetch([0])
        except SdditError:
            return
        findings.expect(False, "it says that it holds no images, and gives one", fix="raise SdditError in fetch")


def examine_spread(dataset: DrawnDataset, ids: list[int], images: torch.Tensor, findings: Findings) -> None:
    """Standard deviations as `fetch` gives means: not negative, and the same whenever they are asked for."""
    spread = dataset.spread(ids)
    if things.is_shaped(findings, spread, tuple(images.shape), "spread gives what"):
        findings.expect(bool((spread >= 0).all()), "a standard deviation is negative, or no number")
        again = dataset.spread(ids[::-1]).flip(0)
        findings.expect(torch.equal(again, spread), "a spread depends on the order in which it is fetched")


def examine_moments(case: Case, facts: DataFacts, findings: Findings) -> None:
    """Check that the stated mean and standard deviation are those of the training images in [-1, 1]."""
    if case.params.normalize != "range" or facts.train_size > SOME:
        return
    dataset = case.build(split="train")
    images, _ = dataset.fetch(range(facts.train_size))
    mean, std = images.double().mean(dim=(0, 2, 3)), images.double().std(dim=(0, 2, 3))
    if isinstance(dataset, DrawnDataset):  # the standard deviation of what is drawn
        std = (std**2 + dataset.spread(range(facts.train_size)).double().square().mean(dim=(0, 2, 3))).sqrt()
    close = torch.allclose(mean, mean.new_tensor(facts.mean), atol=0.02) and torch.allclose(
        std, std.new_tensor(facts.std), rtol=0.02
    )
    findings.expect(
        close,
        "mean and std are not those of the training images",
        got=f"{facts.mean}, {facts.std}",
        expect=f"{mean.tolist()}, {std.tolist()}",
    )
