"""Ask the chosen components what they need and forbid, and report those that cannot answer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from sddit.errors import Problem, SdditError
from sddit.interfaces import Needs, Params, Selected
from sddit.recipes.recipe import Recipe


def components(recipe: Recipe) -> dict[str, Selected[Params]]:
    """Return every selected component by the dotted key of its table, without losses of weight 0."""
    slots = ("backbone", "noise_schedule", "pair_sampler", "attention", "dataset", "sampler", "guidance", "optimizer")
    return {
        **{slot: getattr(recipe, slot) for slot in slots},
        **{f"loss.{label}": chosen for label, chosen in recipe.active_losses.items()},
        **{f"tracker.{label}": chosen for label, chosen in recipe.trackers.items()},
        **{
            f"{'features' if recipe.has_table(label) else 'evaluate.features'}.{label}": chosen
            for label, chosen in recipe.features.items()
        },
    }


def check_answers(recipe: Recipe) -> Iterator[Problem]:
    """Check that components answer what the other checks and the plan need, naming the method that fails."""
    questions: list[tuple[str, str, Callable[[], object], type]] = [
        ("backbone", "grid", lambda: recipe.backbone.params.grid(recipe.shapes), Sequence),
        ("noise_schedule", "t_range", lambda: recipe.noise_schedule.params.t_range, Sequence),
        ("noise_schedule", "level_range", lambda: recipe.noise_schedule.params.level_range, Sequence),
        ("pair_sampler", "views", recipe.pair_sampler.params.views, Sequence),
        *((f"loss.{label}", "needs", chosen.params.needs, Needs) for label, chosen in recipe.active_losses.items()),
    ]
    for key, method, ask, kind in questions:
        try:
            if not isinstance(answer := ask(), kind):
                raise TypeError(f"it returned {type(answer).__name__}, not {kind.__name__}")
        except SdditError as known:
            yield from known.problems
        except ValueError as refused:
            yield Problem("SD-R108", str(refused), where=key, fix=f"change what it names in [{key}]")
        except Exception as failure:
            yield broken_contract(key, components(recipe)[key], method, failure)


def check_components(recipe: Recipe) -> Iterator[Problem]:
    """Apply the rules that the components declare themselves."""
    for key, chosen in components(recipe).items():
        try:
            yield from chosen.params.check(recipe)
        except Exception as failure:
            yield broken_contract(key, chosen, "check", failure)


def broken_contract(key: str, chosen: Selected[Params], method: str, failure: Exception) -> Problem:
    return Problem(
        "SD-P220",
        f"{chosen.component.qualified} failed to answer {type(chosen.params).__name__}.{method}",
        where=key,
        got=f"{type(failure).__name__}: {failure}".rstrip(": "),
        expect="what sddit.interfaces says",
        fix="fix the plugin; sddit.testing.check tests the entire contract",
    )
