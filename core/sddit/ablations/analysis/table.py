"""Tabulate an ablation: one line per arm, with each metric over the seeds and its difference. No torch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from sddit.ablations.analysis.results import AblationResults
from sddit.ablations.analysis.statistics import LEVEL, Comparison, Sides, Summary, compare, p_text, summarize
from sddit.ablations.planning.records import ArmRecord
from sddit.formatting import format_si
from sddit.interfaces import DatasetParams
from sddit.interfaces.metric_names import KNOWN_METRICS, Direction, metric_of
from sddit.recipes.parsing import quoted

PREPARED = tuple(f"dataset.{key}" for key in DatasetParams.model_fields if key != "balanced")
"""Settings of every data set for label dropout, flips and scaling, which leave drawn images and noise unchanged."""


def cells(results: AblationResults) -> tuple[list[str], list[list[str]]]:
    """Return headings and rows for reading."""
    metrics = results.plan.metrics
    compared = {metric: comparisons(results, metric) for metric in metrics}
    headings = ["arm", "changes", "runs", "steps", "images", "FLOPs", "parameters"]
    headings += [text for metric in metrics for text in (metric_title(metric), f"difference ({LEVEL:.0%})")]
    rows = []
    for arm in results.plan.arms:
        statuses = [run.status for run in results.of(arm.label)]
        finished, failed = statuses.count("finished"), statuses.count("failed")
        runs = f"{finished} of {len(statuses)}" if finished < len(statuses) else f"{finished}"
        row = [
            arm.label,
            format_changes(arm.changes),
            f"{runs}, {failed} failed" if failed else runs,
            f"{arm.steps:,}",
            f"{arm.images:,}",
            format_si(arm.flops),
            format_si(arm.parameters),
        ]
        for metric in metrics:
            row += metric_cells(arm, metric, results, compared[metric])
        rows.append(row)
    return headings, rows


def metric_cells(
    arm: ArmRecord, metric: str, results: AblationResults, compared: Mapping[str, Comparison]
) -> tuple[str, str]:
    """Return the cells of a metric of an arm: its mean, and its difference from the baseline."""
    values, finished = list(results.figure(arm.label, metric).values()), len(results.finished_of(arm.label))
    mean = format_summary(summarize(values)) if values else ""
    if 0 < len(values) < finished:  # a metric that some runs do not have
        mean += f" ({len(values)} of {finished} runs)"
    return mean, "baseline" if arm.is_baseline else format_comparison(compared[arm.label])


def comparisons(results: AblationResults, metric: str) -> dict[str, Comparison]:
    """Compare every arm, by label, on one metric with its own baseline, the one at its point of the grid."""
    figures = {arm.label: results.figure(arm.label, metric) for arm in results.plan.arms}
    return against_baselines(results, figures, metric_of(metric).better)


def against_baselines(
    results: AblationResults, figures: Mapping[str, Mapping[int, float]], better: Direction
) -> dict[str, Comparison]:
    """Compare every arm with its baseline on values by arm and seed; skips arms without values.

    An arm whose loss never changed the network is not "within noise": the loss was not tested.
    """
    plan = results.plan
    sides = {
        arm.label: Sides(figures[arm.label], figures[arm.baseline], paired=not redrawing_settings(arm))
        for arm in plan.arms
        if not arm.is_baseline and {arm.label, arm.baseline} <= figures.keys()
    }
    compared = compare(sides, better=better)
    for label, one in compared.items():
        if one.verdict == "within noise" and results.untested_losses(plan.arm(label)):
            compared[label] = replace(one, verdict="no verdict without gradient")
    return compared


def redrawing_settings(arm: ArmRecord) -> list[str]:
    """Return the settings that give an arm other images and noise than its baseline at the same seed."""
    keys = arm.differing("seed", "train.batch", "dataset.", "data.")
    return [key for key in keys if key not in PREPARED]


@dataclass(frozen=True, slots=True)
class Floors:
    """Scores of held-out real images, which samples are compared with."""

    ranges: Mapping[str, tuple[float, float]]  # (minimum, maximum) over the runs, by metric
    images: tuple[float, float] | None  # (minimum, maximum) number of images on each side


def floors_of(results: AblationResults) -> Floors | None:
    """Return the floors of the metrics; None if no run has one."""
    ranges = {}
    for metric in results.plan.metrics:
        key = f"{metric}_floor"
        if found := [run.scores[key] for run in results.runs if key in run.scores]:
            ranges[metric] = (min(found), max(found))
    if not ranges:
        return None
    key = f"{next(iter(ranges)).rpartition('.')[0]}.n"
    images = [run.scores[key] for run in results.runs if key in run.scores]
    return Floors(ranges, (min(images), max(images)) if images else None)


def family_size(compared: Mapping[str, Mapping[str, Comparison]]) -> int:
    """Return the largest number of arms that were tested together on one metric."""
    return max((one.family for arms in compared.values() for one in arms.values()), default=0)


def metric_title(metric: str) -> str:
    """Return the title of a metric: `classifier FD` for `sddit/classifier.fd`."""
    extractor, _, figure = metric.rpartition(".")
    return f"{extractor.rpartition('/')[2]} {KNOWN_METRICS[figure].title}"


def format_changes(values: Mapping[str, Any]) -> str:
    """Return changes as in a recipe: `loss.match = false, pair_sampler.mask_ratio = 0`."""
    return ", ".join(f"{key} = {quoted(value)}" for key, value in values.items()) or "none"


def format_summary(summary: Summary) -> str:
    """Return mean and standard deviation over seeds: `0.312 ± 0.021`, `692 ± 104`."""

    def text(value: float, digits: int) -> str:
        few = f"{value:.{digits}g}"
        return f"{value:.0f}" if 10**digits <= abs(float(few)) < 1e6 else few

    return text(summary.mean, 3) if summary.spread is None else f"{text(summary.mean, 3)} ± {text(summary.spread, 2)}"


def format_comparison(comparison: Comparison) -> str:
    """Return `-0.12 [-0.2, -0.04] better (p = 0.013)`; empty without a difference."""
    if comparison.difference is None:
        return ""
    number, interval = format_difference(comparison)
    p = f" ({p_text(comparison.p_holm)})" if comparison.p_holm is not None else ""
    return f"{number}{f' [{interval}]' if interval else ''} {comparison.verdict}{p}"


def format_difference(comparison: Comparison) -> tuple[str, str]:
    """Return a difference and its interval, such as `-0.12` and `-0.2, -0.04`; empty if unknown.

    The digits are those of two significant digits of half the interval's width.
    """
    if comparison.difference is None:
        return "", ""
    if comparison.low is None or comparison.high is None:
        return f"{comparison.difference:+.2g}", ""
    half = (comparison.high - comparison.low) / 2
    digits = 1 - math.floor(math.log10(half)) if half > 0 else 0

    def text(value: float, sign: str = "") -> str:
        rounded = round(value, digits) + 0.0  # never -0
        return f"{rounded:{sign}.{max(digits, 0)}f}" if half > 0 and digits < 7 else f"{value:{sign}.2g}"

    return text(comparison.difference, "+"), f"{text(comparison.low)}, {text(comparison.high)}"


def records(results: AblationResults) -> Iterator[dict[str, Any]]:
    """Yield one record per arm, with all digits."""
    metrics = results.plan.metrics
    compared = {metric: comparisons(results, metric) for metric in metrics}
    for arm in results.plan.arms:
        label, runs = arm.label, results.of(arm.label)
        statuses = [run.status for run in runs]
        record = {
            "arm": label,
            "changes": format_changes(arm.changes),
            "baseline": arm.baseline,
            "runs": len(runs),
            "finished": statuses.count("finished"),
            "failed": statuses.count("failed"),
            "steps": arm.steps,
            "images": arm.images,
            "flops": arm.flops,
            "parameters": arm.parameters,
            "seconds": sum(run.seconds for run in runs),
        }
        for metric in metrics:
            values = list(results.figure(label, metric).values())
            summary = summarize(values) if values else None
            comparison = compared[metric].get(label)
            record |= {f"{metric} {key}": summary and getattr(summary, key) for key in ("mean", "spread")}
            for key in ("difference", "low", "high", "p_holm", "verdict"):
                record[f"{metric} {key}"] = comparison and getattr(comparison, key)
        yield record
