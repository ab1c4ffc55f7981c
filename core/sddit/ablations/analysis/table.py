"""The table of an ablation: an arm a line, each metric over the seeds and beside the baseline. No torch."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from sddit.ablations.analysis.results import AblationResults
from sddit.ablations.analysis.statistics import LEVEL, Comparison, Sides, Summary, compare, p_text, summarize
from sddit.ablations.planning.records import ArmRecord, PlanRecord
from sddit.formatting import format_si, join_words
from sddit.interfaces import DatasetParams
from sddit.interfaces.metric_names import KNOWN_METRICS, Direction, metric_of
from sddit.recipes.parsing import quoted

PREPARED = tuple(f"dataset.{key}" for key in DatasetParams.model_fields)
"""What every data set can be told: to drop labels, flip and scale. The same images and noise are drawn for it."""


def cells(results: AblationResults) -> tuple[list[str], list[list[str]]]:
    """Headings and rows for a person."""
    metrics = results.plan.metrics
    compared = {metric: comparisons(results, metric) for metric in metrics}
    headings = ["arm", "changes", "runs", "steps", "images", "FLOPs", "parameters"]
    headings += [text for metric in metrics for text in (title(metric), f"difference ({LEVEL:.0%})")]
    rows = [
        [
            *about(arm, results),
            *(text for metric in metrics for text in figures(arm, metric, results, compared[metric])),
        ]
        for arm in results.plan.arms
    ]
    return headings, rows


def about(arm: ArmRecord, results: AblationResults) -> list[str]:
    """What an arm is and what it costs."""
    rows = results.of(arm.label)
    counts = {status: sum(row.status == status for row in rows) for status in ("finished", "failed")}
    runs = f"{counts['finished']} of {len(rows)}" if counts["finished"] < len(rows) else f"{len(rows)}"
    failed = f", {counts['failed']} failed" if counts["failed"] else ""
    return [
        arm.label,
        changes(arm.changes),
        f"{runs}{failed}",
        f"{arm.steps:,}",
        f"{arm.images:,}",
        format_si(arm.flops),
        format_si(arm.parameters),
    ]


def figures(
    arm: ArmRecord, metric: str, results: AblationResults, compared: Mapping[str, Comparison]
) -> tuple[str, str]:
    """A metric of an arm, and how far it is from the baseline's."""
    values = results.figure(arm.label, metric)
    mean = with_spread(summarize(list(values.values()))) if values else ""
    if arm.is_baseline:
        return mean, "baseline"
    return mean, difference(compared[arm.label])


def comparisons(results: AblationResults, metric: str) -> dict[str, Comparison]:
    """Every arm but the baselines on one metric, corrected together, by label.

    Each is compared with its own baseline, the one at its point of the grid.
    """
    figures = {arm.label: results.figure(arm.label, metric) for arm in results.plan.arms}
    return against_baselines(results.plan, figures, metric_of(metric).better)


def against_baselines(
    plan: PlanRecord, figures: Mapping[str, Mapping[int, float]], better: Direction
) -> dict[str, Comparison]:
    """The same of any figure that is known by arm and seed."""
    sides = {
        arm.label: Sides(figures[arm.label], figures[arm.baseline], paired=not redrawn(arm))
        for arm in plan.arms
        if not arm.is_baseline
    }
    return compare(sides, better=better)


def redrawn(arm: ArmRecord) -> list[str]:
    """The settings of an arm by which its runs do not see the images and the noise of the baseline's runs of the same seed."""
    anew = arm.differing("seed", "train.batch", "dataset.", "data.")
    return [key for key in anew if key not in PREPARED]


def floors(results: AblationResults) -> str:
    """What unseen real images get in the place of samples, in a sentence; empty where no score was measured."""
    floored = {
        metric: found
        for metric in results.plan.metrics
        if (found := [row.scores[f"{metric}_floor"] for row in results.runs if f"{metric}_floor" in row.scores])
    }
    if not floored:
        return ""
    each = join_words([f"{reach(found)} on {title(metric)}" for metric, found in floored.items()])
    n = f"{next(iter(floored)).rpartition('.')[0]}.n"
    images = {row.scores[n] for row in results.runs if n in row.scores}
    at = f", at n = {reach(images)} images a side" if images else ""
    return f"Floors: unseen real images in the samples' place get {each}{at}."


def reach(values: Collection[float]) -> str:
    """`0.581`, or `0.581 to 0.602` of several."""
    least, most = (f"{value:,.3g}" if value < 1000 else f"{value:,.0f}" for value in (min(values), max(values)))
    return least if least == most else f"{least} to {most}"


# --------------------------------------------------------------------------------------------------------------------
# Words and numbers
# --------------------------------------------------------------------------------------------------------------------


def title(metric: str) -> str:
    """`sddit/classifier.fd` is `classifier FD`."""
    extractor, _, figure = metric.rpartition(".")
    return f"{extractor.rpartition('/')[2]} {KNOWN_METRICS[figure].title}"


def changes(values: Mapping[str, Any]) -> str:
    """`loss.match = false, pair_sampler.mask_ratio = 0`."""
    return ", ".join(f"{key} = {quoted(value)}" for key, value in values.items()) or "none"


def with_spread(summary: Summary) -> str:
    """`0.312 ± 0.021`, `692 ± 104`: mean and standard deviation over seeds."""

    def text(value: float, digits: int) -> str:
        few = f"{value:.{digits}g}"
        return f"{value:.0f}" if 10**digits <= abs(float(few)) < 1e6 else few

    return text(summary.mean, 3) if summary.spread is None else f"{text(summary.mean, 3)} ± {text(summary.spread, 2)}"


def difference(comparison: Comparison) -> str:
    """`-0.12 [-0.2, -0.04] better (p = 0.013)`."""
    if comparison.difference is None:
        return ""
    number, interval = apart(comparison)
    p = f" ({p_text(comparison.p_holm)})" if comparison.p_holm is not None else ""
    return f"{number}{f' [{interval}]' if interval else ''} {comparison.verdict}{p}"


def legend(compared: Mapping[str, Mapping[str, Comparison]]) -> str:
    """How to read differences, and why a verdict may seem to contradict its interval; empty where none can."""
    family = max((one.family for arms in compared.values() for one in arms.values()), default=0)
    if family < 2:
        return ""
    return (
        f"Each {LEVEL:.0%} interval is that of one difference to the baseline, taken alone. The verdict rests on p, which is corrected "
        f"for looking at {family} arms (Holm): of so many, one is easily that far off by chance, so the verdict may be “within noise” "
        "beside an interval without 0."
    )


def apart(comparison: Comparison) -> tuple[str, str]:
    """A difference and its interval, `-0.12` and `-0.2, -0.04`: as many digits as two of half its width; empty if unknown."""
    if comparison.difference is None:
        return "", ""
    if comparison.low is None or comparison.high is None:
        return f"{comparison.difference:+.2g}", ""
    reach = (comparison.high - comparison.low) / 2
    digits = 1 - math.floor(math.log10(reach)) if reach > 0 else 0

    def text(value: float, sign: str = "") -> str:
        rounded = round(value, digits) + 0.0  # never -0
        return f"{rounded:{sign}.{max(digits, 0)}f}" if reach > 0 and digits < 7 else f"{value:{sign}.2g}"

    return text(comparison.difference, "+"), f"{text(comparison.low)}, {text(comparison.high)}"


# --------------------------------------------------------------------------------------------------------------------
# For a program
# --------------------------------------------------------------------------------------------------------------------


def records(results: AblationResults) -> Iterator[dict[str, Any]]:
    """An arm each, with all digits."""
    metrics = results.plan.metrics
    compared = {metric: comparisons(results, metric) for metric in metrics}
    for arm in results.plan.arms:
        label, rows = arm.label, results.of(arm.label)
        record = {
            "arm": label,
            "changes": changes(arm.changes),
            "baseline": arm.baseline,
            "runs": len(rows),
            "finished": sum(row.status == "finished" for row in rows),
            "failed": sum(row.status == "failed" for row in rows),
            "steps": arm.steps,
            "images": arm.images,
            "flops": arm.flops,
            "parameters": arm.parameters,
            "seconds": sum(row.seconds for row in rows),
        }
        for metric in metrics:
            values = list(results.figure(label, metric).values())
            summary = summarize(values) if values else None
            comparison = compared[metric].get(label)
            record |= {
                f"{metric} mean": summary and summary.mean,
                f"{metric} spread": summary and summary.spread,
                f"{metric} difference": comparison and comparison.difference,
                f"{metric} low": comparison and comparison.low,
                f"{metric} high": comparison and comparison.high,
                f"{metric} p_holm": comparison and comparison.p_holm,
                f"{metric} verdict": comparison and comparison.verdict,
            }
        yield record
