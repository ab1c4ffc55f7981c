"""Check what holds for every feature extractor."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sddit.testing import fixtures
from sddit.testing.case import Case
from sddit.testing.toys.params import ToyDatasetParams

COUNT = 5


def examine(case: Case) -> None:
    """Build an extractor. One that needs a certain data set is given its facts in `runtime`."""
    with case.trying("it was built", fix='check(..., runtime={"facts": ...}) for an extractor of one data set'):
        facts = case.runtime.get("facts") or ToyDatasetParams().facts()
        extractor = case.build(facts=facts, device=torch.device("cpu"))
        case.expect(bool(extractor.title), "it has no title for figures")
        case.equal(extractor.dimensions, case.params.dimensions, "dimensions differ between it and its params")
        images = (fixtures.numbers(COUNT, 3, *facts.image[1:]).sigmoid() * 255).to(torch.uint8)
        with case.trying("it saw images"):
            examine_images(case, extractor, images)


def examine_images(case: Case, extractor: Any, images: Tensor) -> None:
    """Check features and classes: their shapes and repeatability, and that they depend on their own image alone."""
    with case.no_global_randomness():
        found = extractor.features(images)
    if not case.shaped(found, (COUNT, extractor.dimensions), "features(images)"):
        return
    case.expect(found.dtype == torch.float32, "features are not float32", got=found)
    case.expect(not found.requires_grad, "features carry a gradient", fix="torch.no_grad()")
    same = torch.equal(found, extractor.features(images))
    case.expect(same, "it gives other features for the same images")
    differ = not torch.equal(found, found[:1].expand_as(found))
    case.expect(differ, "it gives the same features for all images", fix="check its weights and how it scales images")
    close = torch.allclose(extractor.features(images[1:3]), found[1:3], rtol=1e-3, atol=1e-4)
    case.expect(close, "features of an image depend on the other images", fix="eval() mode")
    classes = extractor.classes(images)
    figures = case.params.own_figures
    if classes is not None:
        case.shaped(classes, (COUNT,), "classes(images)")
    case.expect(
        (classes is not None) == ("class_accuracy" in figures),
        "classes(images) and its params differ on whether it is a classifier",
        got=f"classes: {'None' if classes is None else 'named'}, own_figures: {figures}",
        fix='own_figures returns ("class_accuracy",) where it names classes',
    )
