"""Test once, before the first run, whether the losses of an arm can see their target. Imports torch only to test."""

from __future__ import annotations

from collections.abc import Sequence

from sddit.ablations.planning.arms import Arm
from sddit.ablations.planning.records import LeakCheck
from sddit.formatting import format_si
from sddit.progress import Progress
from sddit.recipes.costs import plan
from sddit.recipes.recipe import Recipe

MAX_PARAMETERS = 50e6  # above this the test, in float64, takes minutes and gigabytes


def check_for_leaks(arms: Sequence[Arm], progress: Progress) -> dict[str, LeakCheck]:
    """Run `sddit.verify.leak` on each arm. Returns results by label."""
    if not arms:
        return {}
    progress.stage("leak test", total=len(arms))
    checks = {}
    for arm in arms:
        checks[arm.label] = check_recipe(arm.recipe)
        progress.tick()
    progress.end_stage()
    return checks


def check_recipe(recipe: Recipe) -> LeakCheck:
    """Test one recipe on the CPU. An error of the recipe is left to its runs to report."""
    size = plan(recipe).backbone_parameters
    if size is not None and size > MAX_PARAMETERS:
        return LeakCheck(
            unchecked=f"the network has {format_si(size)} parameters; sddit.verify.leak(recipe) tests it anyway"
        )
    from sddit.verify import leak

    try:
        measured = leak(recipe)
    except Exception as failure:
        return LeakCheck(unchecked=f"{type(failure).__name__}: {failure}")
    failing = [(one.relation, one.what.removeprefix(f"{recipe.name}: ")) for one in measured if not one.holds]
    if controls := [what for relation, what in failing if relation == ">="]:
        return LeakCheck(unchecked=f"the test would not detect a leak: {controls[0]}")
    return LeakCheck(tuple(what for _, what in failing))
