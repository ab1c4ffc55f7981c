"""Suggest next steps from the numbers of a run."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from statistics import mean, median, variance

from sddit.evaluation.monitors import GRADIENT_SPIKE, MonitorResult, Row, _tail, keys_of, label_of
from sddit.reports.run.run_data import NextStep, ReportData

NEAR_FLOOR = 1.5  # a distance below this multiple of the floor leaves little to gain
STILL_FALLING = 0.03  # minimum fraction by which a loss fell in the last tenth of a run
COPIES = 3.0  # this multiple of the near copies among real images deserves a closer look


def suggestions(run: ReportData, verdicts: Sequence[MonitorResult]) -> Iterator[NextStep]:
    """Suggest next steps from the numbers of this run."""
    for verdict in verdicts:
        if verdict.state == "look here":
            yield NextStep(
                f"{verdict.monitor.title}: {verdict.why}. Healthy is: {verdict.monitor.healthy}. The settings of "
                f"loss.{label_of(verdict.key)} are the place to look."
            )
    if spike := _spike(run.metrics):
        step, times = spike
        yield NextStep(
            f"At step {step:g} the gradient was {times:.0f} times its usual size. A lower optimizer.lr, a longer "
            f"warm-up "
            "or a smaller optimizer.clip calms it."
        )
    for scores in run.scores.values():
        if scores.precision < 0.8 * scores.precision_floor:
            yield NextStep(
                f"By {scores.title}, many samples look unlike any real image (precision {scores.precision:.2f}, "
                f"real images "
                f"{scores.precision_floor:.2f}): train longer, use more sampler steps, or try guidance.",
                "sddit-run show guidances",
            )
        if scores.recall < 0.8 * scores.recall_floor:
            yield NextStep(
                f"By {scores.title}, samples miss part of the variety of real images (recall {scores.recall:.2f}, "
                f"real images "
                f"{scores.recall_floor:.2f}): weaker guidance or longer training widens it."
            )
        if (
            scores.copied is not None
            and scores.copied_floor is not None
            and scores.copied > COPIES * scores.copied_floor
        ):
            yield NextStep(
                f"By {scores.title}, {scores.copied:.1%} of samples lie as near to a training image as "
                f"{scores.copied_floor:.1%} "
                "of real ones do. They may be copies, or merely the plainest of their kind: look at the closest pairs.",
                "sddit-run evaluate RUN --copies",
            )
    near = bool(run.scores) and all(scores.times_floor <= NEAR_FLOOR for scores in run.scores.values())
    if (label := _still_falling(run.metrics)) and not near:
        steps = int(run.metrics[-1]["step"])
        yield NextStep(
            f"loss.{label} was still falling when the run ended: a longer one should help.",
            f"{run.command} train.steps={2 * steps}",
        )


def _spike(metrics: Sequence[Row]) -> tuple[float, float] | None:
    """(step, multiple of the median) of the largest gradient norm after the first tenth, if it stands out."""
    rows = [row for row in metrics if math.isfinite(row.get("grad_norm", math.nan))][len(metrics) // 10 :]
    if not rows:
        return None
    usual = median(row["grad_norm"] for row in rows)
    worst = max(rows, key=lambda row: row["grad_norm"])
    return (
        (worst["step"], worst["grad_norm"] / usual)
        if usual > 0 and worst["grad_norm"] > GRADIENT_SPIKE * usual
        else None
    )


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
            return _tail(key)
    return ""
