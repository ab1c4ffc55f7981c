"""Check that ramps, warmups and the ends of losses fit the length of the run, and that something is learned."""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import BaseModel

from sddit.errors import Problem
from sddit.interfaces import Params
from sddit.recipes.checks.contracts import components
from sddit.recipes.recipe import Recipe
from sddit.value_schedules import Ramp, is_zero, step_of


def check_times(recipe: Recipe) -> Iterator[Problem]:
    """Check that step counts fit into the run, and that every ramp has a positive length."""
    total = recipe.train.steps
    for key, chosen in components(recipe).items():
        yield from _ramps(chosen.params, key, total)
    yield from _ramps(recipe.teacher, "teacher", total)
    for label, chosen in recipe.active_losses.items():
        if step_of(chosen.params.until, total) < 1:
            key = f"loss.{label}.until"
            yield Problem("SD-R108", f"loss {label!r} ends before the first step", key, fix=f"loss.{label}.weight = 0")
        yield from _within_run(f"loss.{label}.until", chosen.params.until, total)
    yield from check_last_loss(recipe)
    yield from _within_run("optimizer.warmup", recipe.optimizer.params.warmup, total)


def check_learning_rate(recipe: Recipe) -> Iterator[Problem]:
    """Check that the learning rate is not 0."""
    if is_zero(recipe.optimizer.params.lr):
        yield Problem("SD-R108", "nothing is learned at a learning rate of 0", "optimizer.lr", "lr = 0", "above 0")


def check_last_loss(recipe: Recipe) -> Iterator[Problem]:
    """Check that some loss lasts until the end of the run."""
    total = recipe.train.steps
    ends = {label: step_of(chosen.params.until, total) for label, chosen in recipe.active_losses.items()}
    last = max(ends, key=lambda label: ends[label], default="")
    if last and 1 <= ends[last] <= total - 1:  # the last step is total - 1, and a loss acts before `until`
        yield Problem(
            "SD-R108",
            "all losses end before the run does",
            where=f"loss.{last}.until",
            got=f"the last one ends at step {ends[last]:g} of {total}",
            expect="one loss that lasts until the end",
            fix=f"remove loss.{last}.until",
        )


def _ramps(settings: BaseModel, key: str, total: int) -> Iterator[Problem]:
    for name, info in type(settings).model_fields.items():
        value, dotted = getattr(settings, name), f"{key}.{info.alias or name}"
        if isinstance(value, Ramp):
            yield from _within_run(f"{dotted}.until", value.until, total)
            if step_of(value.from_, total) >= step_of(value.until, total):
                got = f"from = {value.from_}, until = {value.until}"
                yield Problem("SD-R108", f"{dotted!r} ends before it begins", dotted, got, "from before until")
        elif isinstance(value, Params):
            yield from _ramps(value, dotted, total)


def _within_run(key: str, moment: float, total: int) -> Iterator[Problem]:
    if isinstance(moment, int) and moment > total:
        yield Problem(
            "SD-R108",
            f"{key!r} is after the end of the run",
            where=key,
            got=f"{moment} of {total} steps",
            expect=f"at most {total}",
            fix=f"{key} = {total}, or a fraction of the run such as 0.1",
        )
