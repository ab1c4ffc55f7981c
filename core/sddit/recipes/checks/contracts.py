"""Ask the chosen components what they need, forbid and ignore, and report those that cannot answer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial

from sddit.errors import Problem, SdditError, describe_exception
from sddit.interfaces import CodecFacts, Needs, Params, Selected
from sddit.plugins.mistakes import author_line, suggest_fix
from sddit.recipes.recipe import Recipe


def conflict(what: str, where: str, got: str = "", expect: str = "", fix: str = "") -> Problem:
    """Return the problem of values that do not fit each other, or the run."""
    return Problem("SD-R108", what, where, got, expect, fix)


def components(recipe: Recipe) -> dict[str, Selected[Params]]:
    """Return every selected component by the dotted key of its table, without losses of weight 0."""
    slots = ("backbone", "noise_schedule", "pair_sampler", "attention", "dataset", "sampler", "guidance", "optimizer")
    return {
        **{slot: getattr(recipe, slot) for slot in slots},
        **({"codec": recipe.codec} if recipe.codec else {}),
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
        *(
            (f"loss.{label}", name, partial(getattr, chosen.params, name), bool)
            for label, chosen in recipe.active_losses.items()
            for name in ("couples_samples", "per_process", "trains_network")
        ),
    ]
    if recipe.codec:
        questions.append(("codec", "facts", partial(recipe.codec.params.facts, recipe.facts), CodecFacts))
    for key, method, ask, kind in questions:
        try:
            if not isinstance(answer := ask(), kind):
                yield wrong_answer(key, components(recipe)[key], method, answer, kind)
        except SdditError as known:
            yield from known.problems
        except ValueError as refused:
            yield conflict(str(refused), key, fix=f"change what it names in [{key}]")
        except Exception as failure:
            yield broken_contract(key, components(recipe)[key], method, failure)


def check_components(recipe: Recipe) -> Iterator[Problem]:
    """Apply the rules that the components declare themselves."""
    for key, chosen in components(recipe).items():
        try:
            yield from chosen.params.check(recipe)
        except Exception as failure:
            yield broken_contract(key, chosen, "check", failure)


def idle_keys(recipe: Recipe, given: Iterable[str]) -> list[str]:
    """Return those of the given dotted keys that have no effect in this recipe."""
    prefixes = [f"loss.{label}." for label in recipe.losses if label not in recipe.active_losses]
    if all(chosen.params.needs().teacher is None for chosen in recipe.active_losses.values()):
        prefixes += ["teacher.", "snapshot."]
    elif recipe.snapshot is not None:
        prefixes.append("teacher.")
    labels = {key.split(".")[1] for key in given if key.startswith("features.")}
    prefixes += [f"features.{label}." for label in labels if label not in recipe.features]
    keys = {f"loss.{label}.{key}" for label in recipe.losses for key in ("name", "weight")}
    no_classes = recipe.facts.num_classes == 0
    has_no_effect = {
        "sampler.rho": recipe.sampler.params.grid != "edm",
        "dataset.label_drop": no_classes,
        "evaluate.labels": no_classes,
        "evaluate.per_class": no_classes or recipe.evaluate.previews == 0,
        "evaluate.neighbours": not recipe.features,
        "evaluate.kid_subsets": not recipe.features,
        "evaluate.kid_subset_size": not recipe.features,
        "optimizer.head_lr": not _trains_heads(recipe),
        "optimizer.clip_scope": recipe.optimizer.params.clip is None,
    }
    idle = {key for key, is_idle in has_no_effect.items() if is_idle} | set(_named_idle(recipe))
    prefixes += [f"{key}." for key in idle]  # where it is a table, such as a ramp
    return [key for key in given if key in idle or (key.startswith(tuple(prefixes)) and key not in keys)]


def own_warnings(recipe: Recipe) -> list[str]:
    """Return the warnings of the components, each sentence after the key of its table."""
    found = []
    for key, chosen in components(recipe).items():
        try:
            found += [f"{key}: {text}" for text in chosen.params.warnings(recipe)]
        except Exception as failure:
            raise SdditError(broken_contract(key, chosen, "warnings", failure)) from failure
    return found


def _trains_heads(recipe: Recipe) -> bool:
    """Return whether some loss trains modules of its own. Raises SdditError (SD-P220) that names a loss that fails."""
    for label, chosen in recipe.active_losses.items():
        try:
            if recipe.trains_head(chosen.params):
                return True
        except Exception as failure:
            raise SdditError(broken_contract(f"loss.{label}", chosen, "cost", failure)) from failure
    return False


def _named_idle(recipe: Recipe) -> Iterator[str]:
    """Yield the dotted keys that components report as idle, if they are not at their defaults."""
    for key, chosen in components(recipe).items():
        defaults = type(chosen.params).model_fields
        try:
            for name in chosen.params.idle(recipe):
                if getattr(chosen.params, name) != defaults[name].default:
                    yield f"{key}.{name}"
        except Exception as failure:
            raise SdditError(broken_contract(key, chosen, "idle", failure)) from failure


def wrong_answer(key: str, chosen: Selected[Params], method: str, answer: object, kind: type) -> Problem:
    return Problem(
        "SD-P220",
        f"{chosen.component.qualified} failed to answer {type(chosen.params).__name__}.{method}",
        where=key,
        got=f"it returned {type(answer).__name__}, not {kind.__name__}",
        fix=f"make it a property, with @property above def {method}"
        if callable(answer)
        else f"let it return a {kind.__name__} on every path",
    )


def broken_contract(key: str, chosen: Selected[Params], method: str, failure: Exception) -> Problem:
    line = author_line(failure)
    return Problem(
        "SD-P220",
        f"{chosen.component.qualified} failed to answer {type(chosen.params).__name__}.{method}",
        where=key,
        got=f"{describe_exception(failure)}{f' ({line})' if line else ''}",
        fix=suggest_fix(failure, kind=chosen.component.kind)
        or f"correct {method}: sddit.interfaces says what it takes and returns",
    )
