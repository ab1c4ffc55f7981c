"""Set the length of each arm so that all use the same budget as the recipe without changes. No torch.

images: train.steps x train.batch. flops: by the components' formulas, with backward pass, teacher and heads. time: by
seconds per step, measured once. A point in training given as a fraction of the run scales with its length; one in steps
(`warmup = 50`) refers to the recipe's own length and is rescaled. An arm of equal FLOPs or equal time is thus a
complete run of its own length, with learning rate and ramps, not a longer run that was cut.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any, get_args

from pydantic import AfterValidator, BaseModel

from sddit.ablations.planning.ablation_settings import BudgetRule
from sddit.ablations.planning.arms import Ablation, Arm
from sddit.ablations.planning.axes import nested
from sddit.errors import SdditError, error
from sddit.plugins.host import Host
from sddit.recipes.checks import components
from sddit.recipes.costs import plan
from sddit.recipes.merge import Origin, merge_into
from sddit.recipes.recipe import Recipe
from sddit.recipes.resolve import resolve_merged
from sddit.value_schedules import Ramp, StepOrFraction

COUNTS_STEPS = next(note for note in get_args(StepOrFraction) if isinstance(note, AfterValidator))
"""Annotation of a setting that is a point in training: an int there counts steps."""

Pace = Mapping[str, float]
"""Seconds per training step, by run id of the arm's recipe before it is cut to the budget."""


@dataclass(frozen=True, slots=True)
class Budget:
    """Budget of every arm."""

    rule: BudgetRule
    amount: float  # images, FLOPs or seconds of training
    pace: Pace


def unmeasured(ablation: Ablation, pace: Pace) -> dict[str, Recipe]:
    """Return the recipes, by id, whose seconds per step a budget of time still needs."""
    if ablation.settings.budget != "time":
        return {}
    recipes = [ablation.base, *(arm.recipe for arm in ablation.arms)]
    return {recipe.run_id: recipe for recipe in recipes if recipe.run_id not in pace}


def budget_of(ablation: Ablation, pace: Pace) -> Budget:
    """Return the budget of the recipe without changes. Raises SD-R151 if its FLOPs are not stated."""
    base, rule = ablation.base, ablation.settings.budget
    match rule:
        case "images":
            amount = float(base.train.steps * base.train.batch)
        case "flops":
            amount = base.train.steps * flops_per_step(base)
        case "time":
            amount = base.train.steps * pace[base.run_id]
    return Budget(rule, amount, pace)


def recipe_at_budget(budget: Budget, arm: Arm, host: Host | None = None) -> Recipe:
    """Return the arm's recipe at the length that uses the budget to within half a step.

    The mean cost of a step may change with the length, since ramps of visible tokens are rounded: hence the loop.
    """
    recipes = {arm.recipe.train.steps: arm.recipe}
    recipe = arm.recipe
    while (steps := max(1, round(budget.amount / amount_per_step(budget, arm, recipe)))) not in recipes:
        recipe = recipes[steps] = at_length(arm, steps, host)
    return min(
        recipes.values(), key=lambda one: abs(budget.amount - one.train.steps * amount_per_step(budget, arm, one))
    )


def amount_per_step(budget: Budget, arm: Arm, recipe: Recipe) -> float:
    """Return the amount of budget that a step of the arm takes, at the length of `recipe`."""
    match budget.rule:
        case "images":
            return float(recipe.train.batch)
        case "flops":
            return flops_per_step(recipe)
        case "time":
            return budget.pace[arm.recipe.run_id]


def flops_per_step(recipe: Recipe) -> float:
    """Return the FLOPs per step by the components' formulas. Raises SD-R151 if a component states none."""
    cost = plan(recipe)
    if cost.flops_per_step is None:
        raise error(
            "SD-R151",
            "a budget of FLOPs needs the cost of every component",
            where="ablation.budget",
            got=f"not stated by {', '.join(cost.not_stated)}",
            fix='write its `cost`, or choose ablation.budget = "time" or "images"',
        )
    return cost.flops_per_step


def at_length(arm: Arm, steps: int, host: Host | None = None) -> Recipe:
    """Return the arm as a run of `steps`, with the settings that count steps rescaled."""
    merged, factor = deepcopy(arm.merged), steps / arm.recipe.train.steps
    origin = Origin("budget")
    merge_into(merged, {"train": {"steps": steps}}, origin)
    for key, value in rescaled(arm.recipe, factor):
        merge_into(merged, nested(key, value), origin)
    try:
        return resolve_merged(merged, host=host)
    except SdditError as failure:
        prefix = f"arm {arm.label!r} at {steps} steps"
        raise SdditError(*(replace(one, what=f"{prefix}: {one.what}") for one in failure.problems)) from failure


def rescaled(recipe: Recipe, factor: float) -> Iterator[tuple[str, Any]]:
    """Yield (dotted key, value) of each setting that counts steps, at `factor` times the length."""
    for key, chosen in components(recipe).items():
        yield from _rescaled_in(chosen.params, key, factor)
    yield from _rescaled_in(recipe.teacher, "teacher", factor)


def _rescaled_in(settings: BaseModel, table: str, factor: float) -> Iterator[tuple[str, Any]]:
    for name, info in type(settings).model_fields.items():
        key, value = f"{table}.{info.alias or name}", getattr(settings, name)
        if isinstance(value, Ramp):
            ramp = value.model_dump(by_alias=True)
            ends = {end: _scaled(ramp[end], factor) for end in ("from", "until")}
            if ends.items() - ramp.items():
                yield key, ramp | ends
        elif isinstance(value, BaseModel):
            yield from _rescaled_in(value, key, factor)
        elif COUNTS_STEPS in info.metadata and _scaled(value, factor) != value:
            yield key, _scaled(value, factor)


def _scaled(moment: int | float, factor: float) -> int | float:
    """Return a number of steps rescaled, at least 1; fractions and 0 are unchanged."""
    return max(1, round(moment * factor)) if isinstance(moment, int) and moment > 0 else moment
