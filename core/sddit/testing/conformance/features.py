"""Check what holds for every feature extractor."""

from __future__ import annotations

import torch

from sddit.testing import fixtures as things
from sddit.testing.kit import Case, Findings
from sddit.testing.toys.params import ToyDatasetParams

COUNT = 5


def examine(case: Case, findings: Findings) -> None:
    """Try an extractor on images of a few sizes. One that needs a certain data set is given its facts in `runtime`."""
    with findings.trying("it was built", fix='check(..., runtime={"facts": ...}) for an extractor of one data set'):
        facts = case.runtime.get("facts") or ToyDatasetParams().facts()
        extractor = case.build(facts=facts, device=torch.device("cpu"))
        findings.expect(bool(extractor.title), "it has no title for figures")
        dimensions = extractor.dimensions
        findings.expect(
            dimensions == case.params.dimensions,
            "dimensions differ between it and its params",
            got=str(dimensions),
            expect=str(case.params.dimensions),
        )
        height, width = facts.image[1:]
        images = (things.numbers(COUNT, 3, height, width).sigmoid() * 255).to(torch.uint8)
        with findings.trying("it saw images"):
            with things.no_global_randomness(findings, "it"):
                found = extractor.features(images)
            if not things.is_shaped(findings, found, (COUNT, dimensions), "features(images)"):
                return
            findings.expect(found.dtype == torch.float32, "features are not float32", got=things.shape_of(found))
            findings.expect(not found.requires_grad, "features carry a gradient", fix="torch.no_grad()")
            findings.expect(
                torch.equal(found, extractor.features(images)), "it gives other features for the same images"
            )
            part = extractor.features(images[1:3])
            close = torch.allclose(part, found[1:3], rtol=1e-3, atol=1e-4)
            findings.expect(close, "features of an image depend on the other images", fix="eval() mode")
            classes = extractor.classes(images)
            if classes is not None:
                things.is_shaped(findings, classes, (COUNT,), "classes(images)")
            findings.expect(
                (classes is not None) == ("class_accuracy" in case.params.own_figures),
                "classes(images) and its params differ on whether it is a classifier",
                got=f"classes: {'None' if classes is None else 'named'}, own_figures: {case.params.own_figures}",
                fix='own_figures returns ("class_accuracy",) where it names classes',
            )
