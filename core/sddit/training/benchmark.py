"""Measure training speed, compared with a matrix product on the same machine.

Absolute times on shared machines are unreliable, ratios much less so: the recipes take turns, round after round, and
each figure is a median over the rounds.
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

WARMUP_STEPS = 2
GEMM_SIZE = (2048, 384, 1536)  # rows, in, out: the first MLP layer of DiT-S on 8 images of 256 tokens


@dataclass(frozen=True, slots=True)
class Throughput:
    """Measured training speed of one recipe."""

    name: str
    images_per_second: float  # training
    flops_per_image: float | None  # of one training step, by the components' formulas
    relative: float  # images/s over those of the first recipe, round by round
    peak_share: float | None  # FLOP/s divided by those of the matrix product


@dataclass(frozen=True, slots=True)
class Bench:
    """One run of the benchmark."""

    figures: tuple[Throughput, ...]
    peaks: dict[str, float]  # precision -> FLOP/s of a matrix product
    rounds: int
    threads: int


def bench(recipes: Sequence[Recipe], device: torch.device, rounds: int, seconds: float, progress: Progress) -> Bench:
    """Time training steps of each recipe in turn, for `rounds` turns of about `seconds` each.

    The speeds are compared with those of the first recipe.
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
        for session, steps, speed in zip(sessions, turns, speeds, strict=True):
            speed.append(steps_per_second(session, steps) * session.recipe.train.batch)
            progress.tick()
    progress.end_stage()
    peak = {precision: statistics.median(values) for precision, values in peaks.items()}
    figures = []
    for recipe, own in zip(recipes, speeds, strict=True):
        images, flops = statistics.median(own), plan(recipe).flops_per_image
        relative = statistics.median(mine / first for mine, first in zip(own, speeds[0], strict=True))
        share = None if flops is None else images * flops / peak[recipe.train.precision]
        figures.append(Throughput(recipe.name, images, flops, relative, share))
    return Bench(tuple(figures), peak, rounds, torch.get_num_threads())


def steps_per_second(session: Session, steps: int) -> float:
    """Return the speed of real training steps, including data and update."""
    configure(session.recipe, session.device)
    session.student.train()

    def step() -> None:
        if session.step == session.total_steps:  # a finished run has no active losses
            session.step = 0
        take_step(session)

    return 1 / seconds_per_call(step, steps, session.device)


def matrix_product(precision: str, device: torch.device, seconds: float) -> float:
    """Return the FLOP/s of a matrix product with the shapes of a DiT: the peak speed of this machine."""
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp64": torch.float64}[precision]
    rows, inner, columns = GEMM_SIZE
    a, b = torch.randn(rows, inner, device=device).to(dtype), torch.randn(inner, columns, device=device).to(dtype)
    turns = max(1, round(seconds / seconds_per_call(lambda: a @ b, 3, device)))
    return 2 * rows * inner * columns / seconds_per_call(lambda: a @ b, turns, device)


def seconds_per_call(work: Callable[[], object], times: int, device: torch.device) -> float:
    synchronize(device)
    start = time.perf_counter()
    for _ in range(times):
        work()
    synchronize(device)
    return (time.perf_counter() - start) / times


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
