"""Bury 2-D data in a space of many dimensions and learn to sample it with each prediction of the flow schedule.

The points of a spiral are mapped to D dimensions by a fixed matrix with orthonormal columns. A network of five layers,
each WIDTH wide, learns to denoise them. A network that predicts the noise or the velocity must pass all D dimensions of
the noise through its WIDTH; one that predicts the clean data must output only the two that exist (arXiv:2511.13720).

    python docs/examples/buried_data.py                  # all figures of docs/prediction.md
    python docs/examples/buried_data.py 16 --seeds 1     # one dimension, one seed
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

import sddit
from sddit.diffusion.preconditioning import ModelDenoiser, denoise_view

WIDTH = 64
BATCH = 512
STEPS = 3000
POINTS = 2000  # compared
DIMENSIONS = (2, 16, 64, 256)
PREDICTIONS = ("x0", "velocity", "noise")


def spiral(count: int, seed: int) -> Tensor:
    """Return points of a spiral with one and a half turns, [count, 2], of standard deviation 1."""
    draws = torch.Generator().manual_seed(seed)
    angle = 3 * math.pi * torch.rand(count, generator=draws).sqrt()
    points = torch.stack([angle * angle.cos(), angle * angle.sin()], dim=1)
    points += 0.15 * torch.randn(count, 2, generator=draws)
    return points / 4.6


def basis(dimension: int, seed: int) -> Tensor:
    """Return a random matrix [D, 2] with orthonormal columns."""
    draws = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(dimension, 2, generator=draws, dtype=torch.float64))[0].float()


class Network(nn.Module):
    """A multilayer perceptron on [x, features of the noise level], called as a backbone is."""

    def __init__(self, dimension: int) -> None:
        super().__init__()
        sizes = [dimension + 16, *[WIDTH] * 5]
        hidden = [part for one, two in pairwise(sizes) for part in (nn.Linear(one, two), nn.ReLU())]
        self.layers = nn.Sequential(*hidden, nn.Linear(WIDTH, dimension))

    def forward(self, x: Tensor, c_noise: Tensor, labels: Tensor, **_: Any) -> tuple[Tensor, dict[str, Tensor], Any]:
        angle = c_noise[:, None] * 2.0 ** torch.arange(8, dtype=x.dtype) * (math.pi / 2)
        features = torch.cat([x.flatten(1), angle.sin(), angle.cos()], dim=1)
        return self.layers(features).view(x.shape), {}, {}


def train(dimension: int, prediction: str, space: str, seed: int, steps: int = STEPS) -> tuple[Network, Any]:
    """Train a network on buried points. Return it with its noise schedule."""
    torch.manual_seed(seed)
    schedule = sddit.build("noise_schedules", "flow", {"prediction": prediction})
    loss = sddit.build("losses", "denoising", {"space": space}, grid=(1, 1))
    context = sddit.context(schedule)
    network, into = Network(dimension), basis(dimension, seed)
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-3)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step in range(steps):
        x0 = (spiral(BATCH, seed * 1_000_000 + step) @ into.T).view(BATCH, 1, 1, dimension)
        t = schedule.t_from_uniform(torch.rand(BATCH, dtype=torch.float64))
        view = sddit.view(schedule, x0, torch.randn_like(x0), t, torch.zeros(BATCH, dtype=torch.int64))
        value = loss(context, {"view": view}, {"view": denoise_view(network, schedule, view)}).mean()
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        decay.step()
    return network, schedule


@torch.no_grad()
def sampled(network: Network, schedule: Any, dimension: int, seed: int) -> Tensor:
    """Sample points [POINTS, D] with 50 steps of Heun's method: the sampler does not know the prediction."""
    sampler = sddit.build("samplers", "heun", {"coordinates": "native"}, schedule=schedule)
    low, high = schedule.sigma_range
    sigmas = schedule.grid(50, kind="native", sigma_min=low, sigma_max=high, rho=7.0)
    denoiser, labels = ModelDenoiser(network, schedule, 0), torch.zeros(POINTS, dtype=torch.int64)
    draws = torch.Generator().manual_seed(seed + 10_000)
    start = sigmas[0] * torch.randn(POINTS, 1, 1, dimension, generator=draws, dtype=torch.float64)
    x: Tensor = sampler(lambda x, sigma: denoiser(x, sigma, labels), start, sigmas, noise=lambda step: start)
    return x.flatten(1)


def errors(points: Tensor, into: Tensor) -> tuple[float, float]:
    """Return the energy distance to the spiral within its plane, and the root mean square distance from the plane."""
    plane = points @ into.double()  # [POINTS, 2]
    outside = (points - plane @ into.double().T).square().sum(1).mean().sqrt()
    return energy_distance(plane, spiral(POINTS, 77).double()), float(outside)


def energy_distance(one: Tensor, two: Tensor) -> float:
    """Return 2 E|X - Y| - E|X - X'| - E|Y - Y'|, which is 0 for equal distributions."""

    def within(points: Tensor) -> Tensor:
        return torch.cdist(points, points).sum() / (len(points) * (len(points) - 1))

    return float(2 * torch.cdist(one, two).mean() - within(one) - within(two))


def measure(dimension: int, prediction: str, space: str, seeds: Sequence[int], steps: int = STEPS) -> str:
    """Return a row of the table: means over seeds."""
    found = []
    for seed in seeds:
        network, schedule = train(dimension, prediction, space, seed, steps)
        found.append(errors(sampled(network, schedule, dimension, seed), basis(dimension, seed)))
    inside, outside = torch.tensor(found, dtype=torch.float64).T
    return (
        f"| {dimension} | {prediction} | {space} | {inside.mean():.3f} ({inside.min():.3f} to {inside.max():.3f}) | "
        f"{outside.mean():.3f} ({outside.min():.3f} to {outside.max():.3f}) |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dimensions", nargs="*", type=int, default=DIMENSIONS)
    parser.add_argument("--spaces", nargs="+", default=["velocity"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=STEPS)
    given = parser.parse_args()
    print("| D | prediction | loss space | energy distance in the plane | distance from the plane |")
    print("|---|---|---|---|---|")
    for dimension in given.dimensions:
        for prediction in PREDICTIONS:
            for space in given.spaces:
                print(measure(dimension, prediction, space, range(given.seeds), given.steps), flush=True)


if __name__ == "__main__":
    main()
