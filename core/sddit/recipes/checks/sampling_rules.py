"""Check the sampler and guidance."""

from __future__ import annotations

from collections.abc import Iterator

from sddit.errors import Problem, SdditError, one_of
from sddit.recipes.recipe import Recipe


def check_sampling(recipe: Recipe) -> Iterator[Problem]:
    """Check that the model has the grid, the levels and the outputs that the sampler needs."""
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
            f"sampler {recipe.sampler.component.name!r} needs a learned variance, but this model has none",
            where="sampler.name",
            got=f"noise schedule {schedule.component.name!r} with one output",
            fix="a schedule that learns one, or another sampler: sddit-run show samplers",
        )
    try:
        given.noise_range(schedule.params.level_range)
    except SdditError as refused:
        yield from refused.problems


def check_guidance(recipe: Recipe) -> Iterator[Problem]:
    rule = recipe.guidance
    if not rule.params.needs_null_label:
        return
    if recipe.facts.num_classes == 0:
        what = f"guidance {rule.component.name!r} needs classes, but the data has none"
        yield Problem("SD-T903", what, "guidance.name", rule.component.name, fix='guidance.name = "none"')
    elif recipe.dataset.params.label_drop == 0:
        yield Problem(
            "SD-T903",
            f"guidance {rule.component.name!r} needs a model trained with label dropout",
            where="dataset.label_drop",
            got="label_drop = 0",
            fix='dataset.label_drop = 0.1, or guidance.name = "none"',
        )
