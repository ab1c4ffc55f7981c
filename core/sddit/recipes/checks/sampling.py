"""Check the sampler and guidance."""

from __future__ import annotations

from collections.abc import Iterator

from sddit.errors import Problem, one_of
from sddit.recipes.recipe import Recipe


def check_sampling(recipe: Recipe) -> Iterator[Problem]:
    """Sampling begins above the level at which it ends, on a grid and with outputs that the model has."""
    given, schedule = recipe.sampler.params, recipe.noise_schedule
    if given.grid not in schedule.params.grids:
        yield Problem(
            "SD-R108",
            f"noise schedule {schedule.component.name!r} has no grid {given.grid!r}",
            where="sampler.grid",
            got=given.grid,
            expect=one_of(given.grid, schedule.params.grids),
        )
    if given.needs_variance and schedule.params.outputs < 2:
        yield Problem(
            "SD-R108",
            f"sampler {recipe.sampler.component.name!r} needs a learned variance, and this model has none",
            where="sampler.name",
            got=f"noise schedule {schedule.component.name!r} with one output",
            fix="a schedule that learns one, or another sampler: sddit-run show samplers",
        )
    lowest, highest = recipe.noise_schedule.params.level_range
    low = lowest if given.sigma_min is None else given.sigma_min
    high = highest if given.sigma_max is None else given.sigma_max
    if low >= high:
        keys = [f"sampler.{key}" for key in ("sigma_min", "sigma_max") if getattr(given, key) is not None]
        yield Problem(
            "SD-T902",
            "sampling has no noise to remove: the lowest level is not below the highest",
            where=keys[0] if keys else "noise_schedule",
            got=f"sigma_min = {low:g}, sigma_max = {high:g}",
            expect=f"sigma_min < sigma_max; the schedule's own are {lowest:g} and {highest:g}",
            fix=f"leave {' and '.join(keys)} out" if keys else "",
        )


def check_guidance(recipe: Recipe) -> Iterator[Problem]:
    rule = recipe.guidance
    if not rule.params.needs_null_label:
        return
    if recipe.facts.num_classes == 0:
        what = f"guidance {rule.component.name!r} needs classes, and the data has none"
        yield Problem("SD-T903", what, "guidance.name", rule.component.name, fix='guidance.name = "none"')
    elif recipe.dataset.params.label_drop == 0:
        yield Problem(
            "SD-T903",
            f"guidance {rule.component.name!r} needs a model that was trained with dropped labels",
            where="dataset.label_drop",
            got="label_drop = 0",
            fix='dataset.label_drop = 0.1, or guidance.name = "none"',
        )
