"""Words for groups of arms and for ratios, as sentences of a report need them, and names for their files. No torch."""

from __future__ import annotations

from collections.abc import Iterable

from sddit.ablations.planning.records import ArmRecord, PlanRecord


def among(plan: PlanRecord, labels: Iterable[str]) -> str:
    """The arms by name, in the order of the plan: `every arm`, `every arm but the baseline`, `mdt at every point, dit lr=0.1`.

    Args:
        plan: of the ablation.
        labels: of the arms.
    """
    meant, arms = set(labels), plan.arms
    baselines = {arm.label for arm in arms if arm.label == arm.baseline}
    left = {arm.label for arm in arms} - meant
    if not left:
        return "every arm"
    if left == baselines and len(meant) > 1:
        return f"every arm but the baseline{'s' if len(left) > 1 else ''}"
    return ", ".join(dict.fromkeys(name(plan, arm, meant) for arm in arms if arm.label in meant))


def name(plan: PlanRecord, arm: ArmRecord, meant: set[str]) -> str:
    """Of one arm, or of the named arm that it is a point of, where all points of that are meant."""
    named = arm.named
    points = [one.label for one in plan.arms if one.named == named] if named else []
    return f"{named} at every point" if len(points) > 1 and meant.issuperset(points) else arm.label


def times(one: float, other: float) -> str:
    """`1.5 times`."""
    return f"{one / other:.3g} times"
