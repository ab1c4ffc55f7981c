"""Set the length of each arm so that all use the same budget as the recipe without changes. No torch.

images: train.steps x train.batch. flops: by the components' formulas, with backward pass, teacher and heads. time: by
seconds per step, measured once. A point in training given as a fraction of the run scales with its length; one in steps
(`warmup = 50`) refers to the recipe's own length and is rescaled. An arm of equal FLOPs or equal time is thus a
complete run of its own length, with learning rate and ramps, not a longer run that was cut.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import replace
from typing import Any, get_args

from pydantic import AfterValidator, BaseModel

from sddit.ablations.planning.arms import Ablation, Arm
from sddit.ablations.planning.axes import nested
from sddit.ablations.planning.records import BudgetRecord
from sddit.errors import SdditError, error
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


def unmeasured(ablation: Ablation, pace: Pace) -> dict[str, Recipe]:
    """Return the recipes, by id, whose seconds per step a budget of time still needs."""
    if ablation.settings.budget != "time":
        return {}
    recipes = [ablation.base, *(arm.recipe for arm in ablation.arms)]
    return {recipe.run_id: recipe for recipe in recipes if recipe.run_id not in pace}


def budget_of(ablation: Ablation, pace: Pace) -> BudgetRecord:
    """Return the budget of the recipe without changes. Raises SD-R151 if its FLOPs are not stated."""
    base, budget = ablation.base, BudgetRecord(ablation.settings.budget, None, pace)
    if unmeasured(ablation, pace):
        return budget
    return replace(budget, amount=base.train.steps * amount_per_step(budget, base, base.run_id))


def recipe_at_budget(budget: BudgetRecord, arm: Arm) -> Recipe:
    """Return the arm's recipe at the length that uses the budget to within half a step; unchanged without an amount.

    The mean cost of a step may change with the length, since ramps of visible tokens are rounded: hence the loop.
    """
    recipe, amount = arm.recipe, budget.amount
    if amount is None:
        return recipe
    per_step = {recipe.train.steps: amount_per_step(budget, recipe, recipe.run_id)}
    recipes = {recipe.train.steps: recipe}
    while (steps := max(1, round(amount / per_step[recipe.train.steps]))) not in recipes:
        recipe = recipes[steps] = at_length(arm, steps)
        per_step[steps] = amount_per_step(budget, recipe, arm.recipe.run_id)
    return recipes[min(recipes, key=lambda steps: abs(amount - steps * per_step[steps]))]


def amount_per_step(budget: BudgetRecord, recipe: Recipe, id: str) -> float:
    """Return the images, FLOPs or seconds of a step; `id` is that of the recipe before it is cut to the budget.

    Raises SD-R151 if a component does not state its FLOPs.
    """
    if budget.rule == "images":
        return float(recipe.train.batch)
    if budget.rule == "time":
        return budget.seconds_per_step[id]
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


def at_length(arm: Arm, steps: int) -> Recipe:
    """Return the arm as a run of `steps`, with the settings that count steps rescaled."""
    merged, factor = deepcopy(arm.merged), steps / arm.recipe.train.steps
    tables = {key: chosen.params for key, chosen in components(arm.recipe).items()}
    changes: dict[str, Any] = {"train.steps": steps}
    for table, settings in {**tables, "teacher": arm.recipe.teacher}.items():
        changes |= rescaled(settings, table, factor)
    merge_into(merged, nested(changes), Origin("budget"))
    try:
        return resolve_merged(merged)
    except SdditError as failure:
        prefix = f"arm {arm.label!r} at {steps} steps"
        raise SdditError(*(replace(one, what=f"{prefix}: {one.what}") for one in failure.problems)) from failure


def rescaled(settings: BaseModel, table: str, factor: float) -> Iterator[tuple[str, Any]]:
    """Yield (dotted key, value) of each setting of a table that counts steps, at `factor` times the length."""
    for name, info in type(settings).model_fields.items():
        key, value = f"{table}.{info.alias or name}", getattr(settings, name)
        if isinstance(value, Ramp):
            ramp = value.model_dump(by_alias=True)
            ends = {end: _scaled(ramp[end], factor) for end in ("from", "until")}
            if ends.items() - ramp.items():
                yield key, ramp | ends
        elif isinstance(value, BaseModel):
            yield from rescaled(value, key, factor)
        elif COUNTS_STEPS in info.metadata and _scaled(value, factor) != value:
            yield key, _scaled(value, factor)


def _scaled(moment: int | float, factor: float) -> int | float:
    """Return a number of steps rescaled, at least 1; fractions and 0 are unchanged."""
    return max(1, round(moment * factor)) if isinstance(moment, int) and moment > 0 else moment
