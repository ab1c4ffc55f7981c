"""Measure once, before the first run, what all later commands keep. Imports torch only to measure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import median

from sddit.ablations.planning.arms import Arm
from sddit.ablations.planning.budget import Pace
from sddit.ablations.planning.records import LeakCheck
from sddit.formatting import format_si
from sddit.progress import Progress
from sddit.recipes.costs import plan
from sddit.recipes.recipe import Recipe

ROUNDS = 3
SECONDS = 1.0  # of one turn
WARMUP_STEPS = 2
MAX_PARAMETERS = 50e6  # above this the leak test, in float64, takes minutes and gigabytes


@dataclass(frozen=True, slots=True)
class Measurements:
    """Measurements and choices of the first command, which later ones keep."""

    pace: Pace = field(default_factory=dict)
    threads: int | None = None  # CPU threads of each run, where its recipe does not set them
    leaks: Mapping[str, LeakCheck] = field(default_factory=dict)  # by arm, of those tested


def with_threads(recipe: Recipe, threads: int | None) -> Recipe:
    """Return the recipe with that many CPU threads, unless it sets them itself."""
    if threads is None or recipe.train.threads is not None:
        return recipe
    return replace(recipe, train=recipe.train.model_copy(update={"threads": threads}))


def seconds_per_step(
    recipes: Mapping[str, Recipe], *, device: str, threads: int | None, progress: Progress
) -> dict[str, float]:
    """Return the median of several turns by id. The recipes take turns, with one at a time in memory."""
    seen: dict[str, list[float]] = {id: [] for id in recipes}
    progress.stage("measuring", total=ROUNDS * len(recipes))
    for _ in range(ROUNDS):
        for id, recipe in recipes.items():
            seen[id].append(one_turn(with_threads(recipe, threads), device))
            progress.tick()
    progress.end_stage()
    return {id: median(turns) for id, turns in seen.items()}


def one_turn(recipe: Recipe, device: str) -> float:
    """Return seconds per training step, including data and update, after a short warm-up."""
    from sddit.training.benchmark import steps_per_second
    from sddit.training.build import build_session
    from sddit.training.environment import choose_device

    session = build_session(recipe, choose_device(device))
    steps_per_second(session, WARMUP_STEPS)
    steps = max(1, round(SECONDS * steps_per_second(session, 1)))
    return 1 / steps_per_second(session, steps)


def check_for_leaks(arms: Sequence[Arm], progress: Progress) -> dict[str, LeakCheck]:
    """Run `sddit.verify.leak` on each arm, and return the results by label."""
    if not arms:
        return {}
    progress.stage("leak test", total=len(arms))
    checks = {}
    for arm in arms:
        checks[arm.label] = check_recipe(arm.recipe)
        progress.tick()
    progress.end_stage()
    return checks


def check_recipe(recipe: Recipe) -> LeakCheck:
    """Test one recipe on the CPU. An error of the recipe is left to its runs to report."""
    size = plan(recipe).backbone_parameters
    if size is not None and size > MAX_PARAMETERS:
        return LeakCheck(
            unchecked=f"the network has {format_si(size)} parameters; sddit.verify.leak(recipe) tests it anyway"
        )
    from sddit.verify import leak

    try:
        measured = leak(recipe)
    except Exception as failure:
        return LeakCheck(unchecked=f"{type(failure).__name__}: {failure}")
    failing = [(one.relation, one.what.removeprefix(f"{recipe.name}: ")) for one in measured if not one.holds]
    if controls := [what for relation, what in failing if relation == ">="]:
        return LeakCheck(unchecked=f"the test would not detect a leak: {controls[0]}")
    return LeakCheck(tuple(what for _, what in failing))
