"""Check what holds for every guidance rule."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from sddit.interfaces import Prediction
from sddit.testing import fixtures as things
from sddit.testing.kit import Case, Findings


@dataclass(slots=True)
class ClassDenoiser:
    """Gives each class its own image; notes how many images it was asked for, and with which labels."""

    num_classes: int = things.CLASSES
    images: int = 0
    labels: set[int] = field(default_factory=set)

    def __call__(self, x: Tensor, sigma: float, labels: Tensor) -> Prediction:
        self.images += len(x)
        self.labels |= set(labels.tolist())
        return Prediction(0.1 * x + labels.to(x)[:, None, None, None], extra=torch.zeros_like(x))


def examine(case: Case, findings: Findings) -> None:
    """Try a rule at several levels."""
    with findings.trying("it was built"):
        guidance = case.build(schedule=things.schedule())
        for sigma in (0.01, 1.0, 50.0):
            with findings.trying(f"it guided at sigma = {sigma:g}"):
                examine_level(case, guidance, sigma, findings)


def examine_level(case: Case, guidance: Any, sigma: float, findings: Findings) -> None:
    """Check one level: the prediction's shape, repeatability and cost."""
    denoiser, labels = ClassDenoiser(), torch.arange(things.BATCH) % things.CLASSES
    x = things.numbers(things.BATCH, *things.IMAGE, dtype=torch.float64)
    before = x.clone()
    with things.no_global_randomness(findings, "it"):
        found = guidance(denoiser, labels)(x, sigma)
    if not findings.expect(isinstance(found, Prediction), "it returns no Prediction", got=type(found).__name__):
        return
    things.is_shaped(findings, found.x0, tuple(x.shape), "x0 of its prediction")
    findings.expect(torch.equal(x, before), "it changed x in place")
    again = guidance(ClassDenoiser(), labels)(x, sigma)
    findings.expect(torch.equal(found.x0, again.x0), "it gives another prediction for the same input")
    cost, stated = denoiser.images / len(x), case.params.evaluations
    findings.expect(
        cost <= stated, "it calls the network more often than `evaluations` says", got=f"{cost:g}", expect=str(stated)
    )
    null = things.CLASSES in denoiser.labels
    findings.expect(not null or case.params.needs_null_label, "it uses the null label without needs_null_label")
