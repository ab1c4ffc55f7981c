"""Check what holds for every data set."""

from __future__ import annotations

import torch

from sddit.errors import SdditError
from sddit.interfaces import DataFacts
from sddit.testing.case import Case
from sddit.training.dataset_checks import check_splits, checked_facts


def examine(case: Case) -> None:
    """Check facts and both splits of a data set."""
    facts = checked_facts(case, case.params)
    if facts is None:
        return
    if case.params.holds_images:
        check_splits(case, case.params, facts, lambda split: case.build(split=split))
    else:
        examine_declared(case, facts)


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
