"""Measure seconds per training step of the arms, for a budget of time. The plan keeps them."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import median

from sddit.ablations.planning.plan import with_threads
from sddit.progress import Progress
from sddit.recipes.recipe import Recipe
from sddit.training.benchmark import steps_per_second
from sddit.training.build import build_session
from sddit.training.environment import choose_device

ROUNDS = 3
SECONDS = 1.0  # of one turn
WARMUP_STEPS = 2


def seconds_per_step(
    recipes: Mapping[str, Recipe], *, device: str, threads: int | None, progress: Progress
) -> dict[str, float]:
    """Return the median of several measurements by id. The recipes take turns, with one at a time in memory."""
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
    session = build_session(recipe, choose_device(device))
    steps_per_second(session, WARMUP_STEPS)
    steps = max(1, round(SECONDS * steps_per_second(session, 1)))
    return 1 / steps_per_second(session, steps)
