"""Check how images are sampled, and what is scored, probed and tracked."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from sddit.data.undecoded import NO_SCORES, scores_of_latents
from sddit.errors import Problem, SdditError, one_of
from sddit.recipes.checks.contracts import conflict
from sddit.recipes.differences import differences
from sddit.recipes.recipe import Recipe
from sddit.recipes.start_weights import tables_of
from sddit.storage.run_folder import LATENTS


def check_sampling(recipe: Recipe) -> Iterator[Problem]:
    """Check that the model has the grid, the levels and the outputs that the sampler needs."""
    given = recipe.sampler.params
    schedule, name = recipe.noise_schedule.params, recipe.noise_schedule.component.name
    if given.grid not in schedule.grids:
        what = f"noise schedule {name!r} has no grid {given.grid!r}"
        yield conflict(what, "sampler.grid", given.grid, one_of(given.grid, schedule.grids))
    if given.needs_variance and schedule.outputs < 2:
        what = f"sampler {recipe.sampler.component.name!r} needs a learned variance, but this model has none"
        fix = "a schedule that learns one, or another sampler: sddit-run show samplers"
        yield conflict(what, "sampler.name", f"noise schedule {name!r} with one output", fix=fix)
    try:
        given.noise_range(schedule.level_range)
    except SdditError as refused:
        yield from refused.problems


def check_guidance(recipe: Recipe) -> Iterator[Problem]:
    name = recipe.guidance.component.name
    if not recipe.guidance.params.needs_null_label:
        return
    if recipe.facts.num_classes == 0:
        what = f"guidance {name!r} needs classes, but the data has none"
        yield Problem("SD-T903", what, "guidance.name", name, fix='guidance.name = "none"')
    elif recipe.dataset.params.label_drop == 0:
        what = f"guidance {name!r} needs a model trained with label dropout"
        fix = 'dataset.label_drop = 0.1, or guidance.name = "none"'
        yield Problem("SD-T903", what, "dataset.label_drop", "label_drop = 0", fix=fix)


def check_second_network(recipe: Recipe) -> Iterator[Problem]:
    """Check that a second network of the guidance is another one, for the same data and noise."""
    second = recipe.guidance.params.second_network
    if second is None:
        return
    if second.run:
        yield from unlike_second(recipe, Path(second.run))
        return
    label, known = second.weights or recipe.evaluate.weights, ["student", *recipe.ema]
    if label not in known:
        what = f"no weights {label!r} to guide with"
        yield Problem("SD-R114", what, "guidance", label, one_of(label, known))
    elif label == recipe.evaluate.weights:
        what = "the guidance compares the network with itself, which has no effect"
        yield conflict(what, "guidance", f"the weights {label!r} of this run", "other weights, or another run")


def unlike_second(recipe: Recipe, folder: Path) -> Iterator[Problem]:
    """Yield how the network in a folder differs in data or noise schedule from that of the recipe."""
    try:
        tables = tables_of(folder)
    except SdditError:  # of a run that was sampled before; it is reported when the weights are read
        return
    own = recipe.to_json()
    data = tables.get("data") or tables["dataset"]
    theirs = {
        "classes": len(data["class_names"]) if "class_names" in data else data.get("classes"),
        **tables["dataset"],
    }
    ours = {"classes": recipe.facts.num_classes, **own["dataset"]}
    pairs = [(f"dataset.{key}", ours.get(key), theirs.get(key)) for key in ("classes", "normalize")]
    pairs += [(f"data.{key}", own["data"][key], data[key]) for key in ("image", "mean", "std")]
    schedules = [{"noise_schedule": each["noise_schedule"]} for each in (own, tables)]
    pairs += [(key, mine, other) for key, mine, other, _ in differences(*schedules)]
    for key, mine, other in pairs:
        if mine != other:
            what = f"the second network of the guidance has another {key}"
            fix = "a network that was trained on the same data with the same noise schedule"
            yield Problem("SD-R115", what, "guidance", f"{other} in {folder}", f"{mine}, as in this recipe", fix)


def check_evaluation(recipe: Recipe) -> Iterator[Problem]:
    if recipe.features and not recipe.facts.gives_images:
        got = f"{', '.join(recipe.features)}, and {recipe.facts.source}"
        fix = f"set [codec], or evaluate.features=[]; {LATENTS} of the run then holds what it samples"
        yield scores_of_latents("evaluate.features", got, fix)
    yield from check_image_counts(recipe)
    classes = recipe.facts.num_classes
    if recipe.evaluate.probe and classes < 2:
        yield Problem(
            "SD-T931", "no classes to probe", "evaluate.probe", f"{classes} classes", fix="evaluate.probe=false"
        )
    weights, known = recipe.evaluate.weights, ["student", *recipe.ema]
    if weights not in known:
        what = f"no weights {weights!r} to sample"
        yield Problem("SD-R114", what, "evaluate.weights", weights, one_of(weights, known))


def check_image_counts(recipe: Recipe) -> Iterator[Problem]:
    """Check that every set that is scored, or probed, has enough images."""
    settings, minimum = recipe.evaluate, min_images(recipe.evaluate.neighbours)
    splits = "dataset.holdout" if "holdout" in type(recipe.dataset.params).model_fields else "dataset"
    sets = (
        ("samples", settings.samples, "evaluate.samples", f"evaluate.samples = {minimum}"),
        ("held-out images", recipe.facts.test_size, splits, f"a higher {splits}"),
        ("training images", recipe.facts.train_size, splits, f"a lower {splits}"),
    )
    scored = bool(recipe.features) and recipe.facts.gives_images
    off = "evaluate.features=[]" if scored else "evaluate.probe=false"
    used = sets if scored else sets[1:] if settings.probe else ()
    for name, count, key, fix in used:
        if count < minimum:
            remedy = "more images" if key == "dataset" else fix
            yield too_few_images(name, count, settings.neighbours, key, f"{remedy}, or {off}")


def why_no_scores(recipe: Recipe) -> str:
    """Return why a run of the recipe has no image scores; empty if it has some."""
    if not recipe.facts.gives_images:
        return f"{NO_SCORES}; they are kept in {LATENTS}, in the units of the encoder"
    return "" if recipe.features else "evaluate.features in the recipe names no extractor"


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
            what = f"the trackers {first[name]!r} and {label!r} are the same component"
            fix = f"remove [tracker.{label}]"
            yield conflict(what, f"tracker.{label}", f"name = {name}", "each tracker once", fix)
