"""Speed as ratios of one run: training steps of several recipes in turn, beside the machine's own matrix product.

Times of shared machines lie, ratios taken side by side much less: the recipes take turns, round after round, and each
figure is a median over the rounds.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from sddit.progress import Progress
from sddit.recipes.costs import plan
from sddit.recipes.recipe import Recipe
from sddit.training.build import build_session
from sddit.training.environment import configure
from sddit.training.loop import take_step
from sddit.training.session import Session
from sddit.training.step_metrics import noise_edges

WARMUP_STEPS = 2
GEMM_SIZE = (2048, 384, 1536)  # rows, in, out: the first MLP layer of DiT-S on 8 images of 256 tokens


@dataclass(frozen=True, slots=True)
class Throughput:
    """Measured training speed of one recipe."""

    name: str
    images_per_second: float  # training
    flops_per_image: float | None  # of one training step, by the components' formulas
    relative: float  # images/s over those of the first recipe, round by round
    peak_share: float | None  # counted FLOPs per second over the matrix product's


@dataclass(frozen=True, slots=True)
class Bench:
    """One run of the benchmark."""

    figures: tuple[Throughput, ...]
    peaks: dict[str, float]  # precision -> FLOP/s of a matrix product
    rounds: int
    threads: int


def bench(recipes: Sequence[Recipe], device: torch.device, rounds: int, seconds: float, progress: Progress) -> Bench:
    """Time training steps of each recipe in turn.

    Args:
        recipes: the first one is what the others are compared with.
        device: where.
        rounds: turns of each recipe.
        seconds: about how long one turn lasts.
        progress: where to show how it goes.
    """
    sessions = [build_session(recipe, device) for recipe in recipes]
    progress.stage("bench", total=rounds * (len(sessions) + 1))
    for session in sessions:
        steps_per_second(session, WARMUP_STEPS)
    turns = [max(1, round(seconds * steps_per_second(session, 1))) for session in sessions]
    precisions = sorted({recipe.train.precision for recipe in recipes})
    speeds: list[list[float]] = [[] for _ in sessions]
    peaks: dict[str, list[float]] = {precision: [] for precision in precisions}
    for _ in range(rounds):
        for precision in precisions:
            peaks[precision].append(matrix_product(precision, device, seconds / 4))
        progress.tick()
        for session, steps, seen in zip(sessions, turns, speeds, strict=True):
            seen.append(steps_per_second(session, steps) * session.recipe.train.batch)
            progress.tick()
    progress.end_stage()
    peak = {precision: statistics.median(values) for precision, values in peaks.items()}
    figures = tuple(
        figure(recipe, seen, speeds[0], peak[recipe.train.precision])
        for recipe, seen in zip(recipes, speeds, strict=True)
    )
    return Bench(figures, peak, rounds, torch.get_num_threads())


def figure(recipe: Recipe, seen: Sequence[float], first: Sequence[float], peak: float) -> Throughput:
    """Medians of one recipe's turns."""
    speed = statistics.median(seen)
    flops = plan(recipe).flops_per_image
    relative = statistics.median(mine / theirs for mine, theirs in zip(seen, first, strict=True))
    return Throughput(recipe.name, speed, flops, relative, None if flops is None else speed * flops / peak)


def steps_per_second(session: Session, steps: int) -> float:
    """Take real training steps, data and update included."""
    edges = noise_edges(session)
    configure(session.recipe, session.device)
    session.student.train()

    def step() -> None:
        if session.step == session.total_steps:  # beyond its end a run has nothing to compute
            session.step = 0
        take_step(session, edges)

    return 1 / timed(step, steps, session.device)


def matrix_product(precision: str, device: torch.device, seconds: float) -> float:
    """FLOP/s of a matrix product of DiT's shapes: what this machine can do at best."""
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp64": torch.float64}[precision]
    rows, inner, columns = GEMM_SIZE
    a, b = torch.randn(rows, inner, device=device).to(dtype), torch.randn(inner, columns, device=device).to(dtype)
    turns = max(1, round(seconds / timed(lambda: a @ b, 3, device)))
    return 2 * rows * inner * columns / timed(lambda: a @ b, turns, device)


def timed(work: Callable[[], object], times: int, device: torch.device) -> float:
    """Seconds of one call, over several."""
    synchronise(device)
    began = time.perf_counter()
    for _ in range(times):
        work()
    synchronise(device)
    return (time.perf_counter() - began) / times


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
