"""The table of scores in the report of a run: one row per score, next to its floor."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sddit.formatting import format_number
from sddit.interfaces.metric_names import KNOWN_METRICS

if TYPE_CHECKING:
    from sddit.evaluation.scores import Scores


@dataclass(frozen=True, slots=True)
class ScoreRow:
    """A row of the table of scores, as text."""

    name: str
    n: int
    value: str
    floor: str  # the score of held-out real images
    words: str


@dataclass(frozen=True, slots=True)
class ScoreColumn:
    """A field of `Scores` as a row: it is skipped where the score or its floor was not measured."""

    field: str
    title: str  # a format string of the fields of `Scores`, as is `words`
    words: str
    format: Callable[[float], str] = "{:.2f}".format
    of_all: bool = False  # measured on all samples, not on n


ALL_SAMPLES = "all samples: compare at n = {samples:,} only"
SCORES = (
    ScoreColumn("fd", "{fd_name}", "{times_floor:.1f} times the floor", format_number),
    ScoreColumn(
        "fd_codec",
        "{fd_name} of the codec",
        "held-out images that were encoded and decoded: what the codec alone costs",
        format_number,
    ),
    ScoreColumn("fd_all", "{fd_name}", ALL_SAMPLES, format_number, of_all=True),
    ScoreColumn("kid", "{kid_name}", "{kid_words} ({kid_subsets} subsets of {kid_subset_size})", format_number),
    ScoreColumn("precision", "Precision (k = {neighbours})", "{precision:.0%} of samples are close to a real image"),
    ScoreColumn("recall", "Recall (k = {neighbours})", "{recall:.0%} of real images are close to a sample"),
    ScoreColumn(
        "density",
        "Density (k = {neighbours})",
        "mean number of real neighbourhoods around a sample; above the floor, samples favour the most typical images",
    ),
    ScoreColumn(
        "coverage", "Coverage (k = {neighbours})", "{coverage:.0%} of real images have a sample in their neighbourhood"
    ),
    ScoreColumn(
        "copied",
        "Near copies",
        "{copied:.1%} of samples are as close to a training image as {copied_floor:.1%} of held-out real images",
        "{:.3f}".format,
        of_all=True,
    ),
    ScoreColumn(
        "class_accuracy", "Class accuracy", "{class_accuracy:.0%} of samples show the requested class", of_all=True
    ),
)


def score_rows(scores: Scores) -> Iterator[ScoreRow]:
    """Yield each score next to its floor, with what the comparison means; the extractor's own figures are last."""
    values = {**scores.to_json(), "fd_name": scores.fd_name, "kid_name": scores.kid_name}
    values |= {"times_floor": scores.times_floor, "kid_words": kid_words(scores)}

    def text(key: str, column: ScoreColumn) -> str:
        value, spread = values.get(key), values.get(f"{key}_spread")
        return "" if value is None else column.format(value) + ("" if spread is None else f" ± {format_number(spread)}")

    for column in SCORES:
        floor = f"{column.field}_floor"
        if values.get(column.field) is None or (floor in values and values[floor] is None):
            continue
        yield ScoreRow(
            column.title.format_map(values),
            scores.samples if column.of_all else scores.n,
            text(column.field, column),
            text(floor, column),
            column.words.format_map(values),
        )
    for key, value in scores.own.items():
        name = KNOWN_METRICS[key].title if key in KNOWN_METRICS else key
        yield ScoreRow(name, scores.samples, format_number(value), "", ALL_SAMPLES.format_map(values))


def kid_words(scores: Scores) -> str:
    """Compare the kernel distance with that of real images, within two standard deviations over subsets."""
    within = scores.kid <= scores.kid_floor + 2 * max(scores.kid_spread, scores.kid_floor_spread)
    return "within the spread of real images" if within else "above the spread of real images"
