"""Find keys without effect, and collect the warnings of components."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from sddit.errors import SdditError
from sddit.recipes.checks.contracts import broken_contract, components
from sddit.recipes.recipe import Recipe


def idle_keys(recipe: Recipe, given: Iterable[str]) -> list[str]:
    """Return those of the given dotted keys that have no effect in this recipe."""
    prefixes = [f"loss.{label}." for label in recipe.losses if label not in recipe.active_losses]
    if all(chosen.params.needs().teacher is None for chosen in recipe.active_losses.values()):
        prefixes.append("teacher.")
    labels = {key.split(".")[1] for key in given if key.startswith("features.")}
    prefixes += [f"features.{label}." for label in labels if label not in recipe.features]
    keys = {f"loss.{label}.{key}" for label in recipe.losses for key in ("name", "weight")}
    silent = set()
    if recipe.sampler.params.grid != "edm":
        silent.add("sampler.rho")
    if recipe.facts.num_classes == 0:
        silent |= {"dataset.label_drop", "evaluate.labels", "evaluate.per_class"}
    if recipe.evaluate.previews == 0:
        silent.add("evaluate.per_class")
    if not recipe.features:
        silent |= {f"evaluate.{key}" for key in ("neighbours", "kid_subsets", "kid_subset_size")}
    if not _trains_heads(recipe):
        silent.add("optimizer.head_lr")
    if recipe.optimizer.params.clip is None:
        silent.add("optimizer.clip_scope")
    silent |= set(_named_idle(recipe))
    prefixes += [f"{key}." for key in silent]  # where it is a table, such as a ramp
    return [key for key in given if key in silent or (key.startswith(tuple(prefixes)) and key not in keys)]


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
    """Return whether some loss trains modules of its own, naming the loss that cannot answer."""
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
