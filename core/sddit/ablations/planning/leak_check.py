"""Whether an arm's losses can see their target: looked for once, before the first run. Torch only where it is looked."""

from __future__ import annotations

from collections.abc import Sequence

from sddit.ablations.planning.arms import Arm
from sddit.ablations.planning.records import LeakCheck
from sddit.formatting import format_si
from sddit.progress import Progress
from sddit.recipes.costs import plan
from sddit.recipes.recipe import Recipe

LARGEST = 50e6  # parameters: above, looking takes minutes and gigabytes, in float64


def test_for_leaks(arms: Sequence[Arm], progress: Progress) -> dict[str, LeakCheck]:
    """`sddit.verify.leak` on each arm, by label."""
    if not arms:
        return {}
    progress.stage("leak test", total=len(arms))
    checks = {}
    for arm in arms:
        checks[arm.label] = look(arm.recipe)
        progress.tick()
    progress.end_stage()
    return checks


def look(recipe: Recipe) -> LeakCheck:
    """One recipe, on the CPU. What fails there is for its runs to report, not for this check."""
    size = plan(recipe).backbone_parameters
    if size is not None and size > LARGEST:
        return LeakCheck(
            unchecked=f"the network has {format_si(size)} parameters; sddit.verify.leak(recipe) looks all the same"
        )
    from sddit.verify import leak

    try:
        measured = leak(recipe)
    except Exception as failure:
        return LeakCheck(unchecked=f"{type(failure).__name__}: {failure}")
    failing = [(one.relation, one.what.removeprefix(f"{recipe.name}: ")) for one in measured if not one.holds]
    if controls := [what for relation, what in failing if relation == ">="]:
        return LeakCheck(unchecked=f"nothing would show: {controls[0]}")
    return LeakCheck(tuple(what for _, what in failing))
