"""Name groups of arms, and write the sentences below a table of metrics. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from sddit.ablations.analysis.results import AblationResults
from sddit.ablations.analysis.statistics import LEVEL, Comparison
from sddit.ablations.analysis.table import family_size, floors_of, metric_title
from sddit.ablations.planning.records import ArmRecord, PlanRecord
from sddit.reports.rendering import sentence


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


def floors_sentence(results: AblationResults) -> str:
    """Return the scores of held-out real images in a sentence; empty without any."""
    if (floors := floors_of(results)) is None:
        return ""
    ranges = [(metric_title(metric), ends) for metric, ends in floors.ranges.items()]
    return sentence("floors", ranges=ranges, images=floors.images)


def interval_note(compared: Mapping[str, Mapping[str, Comparison]]) -> str:
    """Return how to read intervals and verdicts of arms that were tested together; empty for a single arm."""
    family = family_size(compared)
    return sentence("intervals", level=f"{LEVEL:.0%}", family=family) if family > 1 else ""
