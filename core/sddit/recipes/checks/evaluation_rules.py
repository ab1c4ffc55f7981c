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
    """Check that every set that is scored, or probed, has enough images."""
    settings, minimum = recipe.evaluate, min_images(recipe.evaluate.neighbours)
    splits = "dataset.holdout" if "holdout" in type(recipe.dataset.params).model_fields else "dataset"
    sets = (
        ("samples", settings.samples, "evaluate.samples", f"evaluate.samples = {minimum}"),
        ("held-out images", recipe.facts.test_size, splits, f"a higher {splits}"),
        ("training images", recipe.facts.train_size, splits, f"a lower {splits}"),
    )
    off = "evaluate.features=[]" if recipe.features else "evaluate.probe=false"
    used = sets if recipe.features else sets[1:] if settings.probe else ()
    for name, count, key, fix in used:
        if count < minimum:
            remedy = "more images" if key == "dataset" else fix
            yield too_few_images(name, count, settings.neighbours, key, f"{remedy}, or {off}")


def min_images(neighbours: int) -> int:
    """Return how many images a score needs: more than neighbours of one of them, and two for a variance."""
    return max(2, neighbours + 1)


def too_few_images(name: str, count: int, neighbours: int, where: str, fix: str) -> Problem:
    expect = f"at least {min_images(neighbours)} for evaluate.neighbours = {neighbours}"
    return Problem("SD-T906", f"too few {name} to score", where, str(count), expect, fix)


def check_trackers(recipe: Recipe) -> Iterator[Problem]:
    """Check that each tracker is used once: two of one component would write the same files."""
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
