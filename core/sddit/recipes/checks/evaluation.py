"""Check what is scored, probed and tracked."""

from __future__ import annotations

from collections.abc import Iterator

from sddit.errors import Problem, one_of
from sddit.recipes.recipe import Recipe


def check_evaluation(recipe: Recipe) -> Iterator[Problem]:
    yield from check_image_counts(recipe)
    if recipe.evaluate.probe and recipe.facts.num_classes < 2:
        yield Problem(
            "SD-T931",
            "no classes to probe",
            "evaluate.probe",
            f"{recipe.facts.num_classes} classes",
            fix="evaluate.probe=false",
        )
    weights = recipe.evaluate.weights
    known = ["student", *recipe.ema]
    if weights and weights not in known:
        yield Problem(
            "SD-R114", f"no weights {weights!r} to sample", "evaluate.weights", weights, one_of(weights, known)
        )


def check_image_counts(recipe: Recipe) -> Iterator[Problem]:
    """Every set that is scored, or probed, needs more images than one of them has neighbours, and two to have a spread."""
    least = max(2, recipe.evaluate.neighbours + 1)
    splits = "dataset.holdout" if "holdout" in type(recipe.dataset.params).model_fields else "dataset"
    sets = (
        ("samples", recipe.evaluate.samples, "evaluate.samples", f"evaluate.samples = {least}"),
        ("held-out images", recipe.facts.test_size, splits, f"a higher {splits}"),
        ("training images", recipe.facts.train_size, splits, f"a lower {splits}"),
    )
    looked_at = sets if recipe.features else sets[1:] if recipe.evaluate.probe else ()
    for what, count, key, remedy in looked_at:
        if count < least:
            yield Problem(
                "SD-T906",
                f"too few {what} to score",
                where=key,
                got=str(count),
                expect=f"at least {least} for evaluate.neighbours = {recipe.evaluate.neighbours}",
                fix=f"{'more images' if key == 'dataset' else remedy}, or {'evaluate.features=[]' if recipe.features else 'evaluate.probe=false'}",
            )


def check_trackers(recipe: Recipe) -> Iterator[Problem]:
    """Two trackers of one component would write the same files."""
    first: dict[str, str] = {}
    for label, chosen in recipe.trackers.items():
        name = chosen.component.qualified
        if first.setdefault(name, label) != label:
            yield Problem(
                "SD-R108",
                f"the trackers {first[name]!r} and {label!r} are the same component",
                where=f"tracker.{label}",
                got=f"name = {name}",
                expect="each tracker once",
                fix=f"remove [tracker.{label}]",
            )
