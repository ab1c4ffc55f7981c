"""Text helpers for ablation reports and tables. No torch."""

from __future__ import annotations

from collections.abc import Iterable

from sddit.ablations.analysis.statistics import LEVEL, Comparison, p_text
from sddit.ablations.analysis.table import Floors, metric_title
from sddit.ablations.planning.records import ArmRecord, PlanRecord
from sddit.formatting import format_count, join_words


def format_arms(plan: PlanRecord, labels: Iterable[str]) -> str:
    """Return arms in the order of the plan: `every arm`, `every arm but the baseline`, `mdt at every point, dit
    lr=0.1`.
    """
    chosen, arms = set(labels), plan.arms
    baselines = {arm.label for arm in arms if arm.is_baseline}
    others = {arm.label for arm in arms} - chosen
    if not others:
        return "every arm"
    if others == baselines and len(chosen) > 1:
        return f"every arm but the baseline{'s' if len(others) > 1 else ''}"
    return ", ".join(dict.fromkeys(format_arm(plan, arm, chosen) for arm in arms if arm.label in chosen))


def format_arm(plan: PlanRecord, arm: ArmRecord, chosen: set[str]) -> str:
    """Return the label of an arm, or its named arm if all grid points of that are chosen."""
    points = [one.label for one in plan.arms if one.named == arm.named] if arm.named else []
    return f"{arm.named} at every point" if len(points) > 1 and chosen.issuperset(points) else arm.label


def format_ratio(value: float, reference: float) -> str:
    """Return a ratio: `1.5 times`."""
    return f"{value / reference:.3g} times"


def format_range(low: float, high: float) -> str:
    """Return a range: `0.581`, or `0.581 to 0.602`."""
    texts = [f"{value:,.3g}" if value < 1000 else f"{value:,.0f}" for value in (low, high)]
    return texts[0] if texts[0] == texts[1] else f"{texts[0]} to {texts[1]}"


def floors_sentence(floors: Floors | None) -> str:
    """Return the scores of held-out real images in a sentence; empty without any."""
    if floors is None:
        return ""
    each = join_words([f"{format_range(*ends)} on {metric_title(metric)}" for metric, ends in floors.ranges.items()])
    images = f", at n = {format_range(*floors.images)} images per side" if floors.images else ""
    return f"Floors, the scores of held-out real images: {each}{images}."


def interval_note(family: int) -> str:
    """Return how to read intervals and verdicts of arms that were tested together; empty for a single arm."""
    if family < 2:
        return ""
    return (
        f"The {LEVEL:.0%} intervals are uncorrected; p-values are Holm-corrected for {family} arms, so an "
        f"interval may exclude 0 "
        "while the verdict is “within noise”."
    )


def comparison_text(one: Comparison) -> str:
    """Return `better: -0.12, 95% interval -0.2 to -0.04 over 5 seeds, p = 0.013 corrected for 4 arms`."""
    seeds = format_count(one.seeds, "seed")
    if one.difference is None or one.low is None or one.high is None:
        measured = "" if one.difference is None else f": {one.difference:+.3g}"
        return f"{one.verdict}{measured} ({seeds})"
    text = f"{one.verdict}: {one.difference:+.3g}, {LEVEL:.0%} interval {one.low:.3g} to {one.high:.3g} over {seeds}"
    if one.p is None or one.p_holm is None:
        return text
    corrected = f" corrected for {one.family} arms" if one.family > 1 else ""
    alone = f" (alone {p_text(one.p)})" if one.p < 1 - LEVEL <= one.p_holm else ""
    return f"{text}, {p_text(one.p_holm)}{corrected}{alone}"
