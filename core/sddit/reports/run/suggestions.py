"""Suggest next steps from the numbers of a run."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from statistics import mean, median, variance

from sddit.evaluation.monitors import GRADIENT_SPIKE, MonitorResult, Row, keys_of, label_of
from sddit.reports.rendering import sentence
from sddit.reports.run.run_data import NextStep, ReportData

NEAR_FLOOR = 1.5  # a distance below this multiple of the floor leaves little to gain
STILL_FALLING = 0.03  # minimum fraction by which a loss fell in the last tenth of a run
MANY_COPIES = 3.0  # this multiple of the near copies among real images deserves a closer look
FEW = 0.8  # a precision or recall below this fraction of that of real images deserves a suggestion


def suggestions(run: ReportData, verdicts: Sequence[MonitorResult]) -> Iterator[NextStep]:
    """Suggest next steps from the numbers of this run."""
    for verdict in verdicts:
        if verdict.state == "look here":
            yield NextStep(sentence("alarm", verdict=verdict, loss=label_of(verdict.key)))
    if spike := _spike(run.metrics):
        step, times = spike
        yield NextStep(sentence("spike", step=step, times=times))
    for scores in run.scores.values():
        if scores.precision < FEW * scores.precision_floor:
            yield NextStep(sentence("low_precision", scores=scores), "sddit-run show guidances")
        if scores.recall < FEW * scores.recall_floor:
            yield NextStep(sentence("low_recall", scores=scores))
        copied, floor = scores.copied, scores.copied_floor
        if copied is not None and floor is not None and copied > MANY_COPIES * floor:
            yield NextStep(sentence("near_copies", scores=scores), "sddit-run evaluate RUN --copies")
    near = bool(run.scores) and all(scores.times_floor <= NEAR_FLOOR for scores in run.scores.values())
    if (label := _still_falling(run.metrics)) and not near:
        steps = 2 * int(run.metrics[-1]["step"])
        yield NextStep(sentence("still_falling", loss=label), f"{run.command} train.steps={steps}")


def _spike(metrics: Sequence[Row]) -> tuple[float, float] | None:
    """(step, multiple of the median) of the largest gradient norm after the first tenth, if it stands out."""
    rows = [row for row in metrics if math.isfinite(row.get("grad_norm", math.nan))][len(metrics) // 10 :]
    if not rows:
        return None
    usual = median(row["grad_norm"] for row in rows)
    largest = max(rows, key=lambda row: row["grad_norm"])
    stands_out = usual > 0 and largest["grad_norm"] > GRADIENT_SPIKE * usual
    return (largest["step"], largest["grad_norm"] / usual) if stands_out else None


def _still_falling(metrics: Sequence[Row]) -> str:
    """Return the first loss that still falls clearly over the last tenth of the run, or an empty string."""
    for key in keys_of(metrics):
        values = [row[key] for row in metrics if key in row]
        tenth = len(values) // 10
        if not key.startswith("loss/") or "@" in key or tenth < 3:
            continue
        before, last = values[-2 * tenth : -tenth], values[-tenth:]
        if not all(map(math.isfinite, (*before, *last))):
            continue
        noise = math.sqrt((variance(before) + variance(last)) / tenth)
        if mean(before) - mean(last) > max(3 * noise, STILL_FALLING * abs(mean(before))):
            return label_of(key)
    return ""
