"""The figures of `scores.json` that arms are compared by: what they are called, and which way is better. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Direction = Literal["lower", "higher"]


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure of an extractor."""

    title: str
    better: Direction


FIGURES: Mapping[str, Figure] = {
    "fd": Figure("FD", "lower"),
    "fd_all": Figure("FD of all samples", "lower"),
    "kid": Figure("KID", "lower"),
    "precision": Figure("precision", "higher"),
    "recall": Figure("recall", "higher"),
    "density": Figure("density", "higher"),
    "coverage": Figure("coverage", "higher"),
    "copied": Figure("copied", "lower"),
    "class_accuracy": Figure("accuracy", "higher"),
}
"""By the name of the field in `sddit.evaluation.scores.Scores`."""

COURSE = ("fd", "kid", "precision", "recall", "density", "coverage", "class_accuracy")
"""Those that are followed while training; the others are of all samples of the end."""

SCORE = "score/"
"""How the keys of scores begin in `metrics.jsonl`: `score/classifier.fd`."""
