"""The figures of `scores.json` that arms are compared by: what they are called, and which way is better. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

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
    "fid": Figure("FID", "lower"),
    "sfid": Figure("sFID", "lower"),
    "inception_score": Figure("Inception score", "higher"),
    "precision_adm": Figure("precision (ADM)", "higher"),
    "recall_adm": Figure("recall (ADM)", "higher"),
}
"""By the name of the field in `sddit.evaluation.scores.Scores`, or of an extractor's own figure."""

OWN = ("class_accuracy", "fid", "sfid", "inception_score", "precision_adm", "recall_adm")
"""Those that only some extractors measure: `FeatureParams.own_figures` names them."""

COURSE = ("fd", "kid", "precision", "recall", "density", "coverage", "class_accuracy")
"""Those that are followed while training; the others are of all samples of the end."""

SCORE = "score/"
"""How the keys of scores begin in `metrics.jsonl`: `score/classifier.fd`."""


def numbers(scores: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """(figure, value) of everything that `scores.json` holds of one extractor, its own figures included."""
    for key, value in scores.items():
        yield from value.items() if key == "own" else [(key, value)]
