"""Check what holds for every guidance rule."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from sddit.interfaces import Prediction
from sddit.testing import fixtures
from sddit.testing.case import Case


@dataclass(slots=True)
class ClassDenoiser:
    """Predict another image for each class. Counts the images and collects the labels that it is called with."""

    num_classes: int = fixtures.CLASSES
    heads: tuple[str, ...] = ()
    images: int = 0
    labels: set[int] = field(default_factory=set)

    def __call__(self, x: Tensor, sigma: float, labels: Tensor) -> Prediction:
        self.images += len(x)
        self.labels |= set(labels.tolist())
        heads = dict.fromkeys(self.heads, 0.3 * x)
        return Prediction(0.1 * x + labels.to(x)[:, None, None, None], extra=torch.zeros_like(x), heads=heads)


def examine(case: Case) -> None:
    """Test a rule at several noise levels."""
    with case.trying("it was built"):
        second = {"second": ClassDenoiser()} if case.params.second_network else {}
        guidance = case.build(schedule=fixtures.schedule(), **second)
        for sigma in (0.01, 1.0, 50.0):
            with case.trying(f"it guided at sigma = {sigma:g}"):
                examine_level(case, guidance, sigma)


def examine_level(case: Case, guidance: Any, sigma: float) -> None:
    """Check one level: the prediction's shape, repeatability and cost."""
    denoiser, labels = ClassDenoiser(heads=case.params.heads), torch.arange(fixtures.BATCH) % fixtures.CLASSES
    x = fixtures.numbers(fixtures.BATCH, *fixtures.IMAGE, dtype=torch.float64)
    before = x.clone()
    with case.no_global_randomness():
        found = guidance(denoiser, labels)(x, sigma)
    if not case.instance(found, Prediction, "it returns no Prediction"):
        return
    case.shaped(found.x0, tuple(x.shape), "x0 of its prediction")
    case.expect(torch.equal(x, before), "it changed x in place")
    again = guidance(ClassDenoiser(heads=case.params.heads), labels)(x, sigma)
    case.expect(torch.equal(found.x0, again.x0), "it gives another prediction for the same input")
    cost = denoiser.images / len(x)
    stated = case.params.evaluations
    what = "it calls the network more often than `evaluations` says"
    case.expect(cost <= stated, what, got=f"{cost:g}", expect=stated)
    null = fixtures.CLASSES in denoiser.labels
    case.expect(not null or case.params.needs_null_label, "it uses the null label without needs_null_label")
