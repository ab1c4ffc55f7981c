"""Name the metrics of `scores.json`, and state which direction is better. Torch-free."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

Direction = Literal["lower", "higher"]  # the better values of a metric


@dataclass(frozen=True, slots=True)
class Metric:
    title: str
    better: Direction


KNOWN_METRICS: Mapping[str, Metric] = {
    "fd": Metric("FD", "lower"),
    "fd_all": Metric("FD of all samples", "lower"),
    "kid": Metric("KID", "lower"),
    "precision": Metric("precision", "higher"),
    "recall": Metric("recall", "higher"),
    "density": Metric("density", "higher"),
    "coverage": Metric("coverage", "higher"),
    "copied": Metric("copied", "lower"),
    "class_accuracy": Metric("accuracy", "higher"),
    "fid": Metric("FID", "lower"),
    "sfid": Metric("sFID", "lower"),
    "inception_score": Metric("Inception score", "higher"),
    "precision_adm": Metric("precision (ADM)", "higher"),
    "recall_adm": Metric("recall (ADM)", "higher"),
}
"""By field of `sddit.evaluation.scores.Scores`, or by name of an extractor's own figure."""

EXTRACTOR_METRICS = ("class_accuracy", "fid", "sfid", "inception_score", "precision_adm", "recall_adm")
"""Metrics that only some extractors measure, listed in `FeatureParams.own_figures`."""

TRAINING_METRICS = ("fd", "kid", "precision", "recall", "density", "coverage", "class_accuracy")
"""Metrics that are also scored during training; the others need all samples of the final evaluation."""

SCORE = "score/"
"""Prefix of the keys of scores in `metrics.jsonl`, as in `score/classifier.fd`."""


def metric_of(name: str) -> Metric:
    """Return the metric of a name with its extractor, such as `classifier.fd`."""
    return KNOWN_METRICS[name.rpartition(".")[2]]


def metric_values(scores: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield (metric, value) of the scores of one extractor in `scores.json`, including its own figures."""
    for key, value in scores.items():
        yield from value.items() if key == "own" else [(key, value)]
