"""Compute the chain of a DDPM (arXiv:2006.11239) in Python floats: noise levels, reverse steps, respacing. No torch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache
from itertools import accumulate, pairwise, repeat

DDIM = "ddim"
"""Prefix of respacings with an integer stride."""


def linear_betas(count: int, beta_min: float, beta_max: float) -> list[float]:
    """Return `count` evenly spaced betas: DDPM (arXiv:2006.11239), section 4."""
    return [beta_min + (beta_max - beta_min) * i / (count - 1) for i in range(count)]


def cosine_betas(count: int) -> list[float]:
    """Return betas of abar = cos^2((u + s) / (1 + s) pi / 2), s = 0.008, at most 0.999: arXiv:2102.09672, eq. 17."""
    abars = [math.cos((i / count + 0.008) / 1.008 * math.pi / 2) ** 2 for i in range(count + 1)]
    return [min(1 - abar_next / abar, 0.999) for abar, abar_next in pairwise(abars)]


def levels_of(betas: Iterable[float]) -> tuple[float, ...]:
    """Return the ascending noise levels sigma_t = sqrt((1 - abar_t) / abar_t).

    abar_t is the product of 1 - beta up to t, so 1 + sigma_t^2 grows by the factor 1 / (1 - beta_t) at each step. The
    recurrence for sigma^2 has no cancellation at small noise.
    """
    squares = accumulate(betas, lambda square, beta: (square + beta) / (1 - beta), initial=0.0)
    return tuple(math.sqrt(square) for square in squares)[1:]


@dataclass(frozen=True)
class Chain:
    """x_t = sqrt(1 - beta_t) x_{t-1} + sqrt(beta_t) eps, given by ascending noise levels sigma_t, t = 0 ... T - 1.

    Any ascending noise levels are such a chain: abar = 1 / (1 + sigma^2) and beta_t = 1 - abar_t / abar_{t-1}, with
    abar_{-1} = 1. So the noise levels of a sampler are a respaced chain (arXiv:2102.09672, eq. 19) for any model.
    Variances are those of x_t, not of x_t / sqrt(abar_t).
    """

    levels: tuple[float, ...]

    @cached_property
    def _squares(self) -> list[tuple[float, float]]:
        """Pairs (sigma_t^2, sigma_{t-1}^2) for each t."""
        squares = [level**2 for level in self.levels]
        return list(zip(squares, [0.0, *squares], strict=False))

    @cached_property
    def betas(self) -> tuple[float, ...]:
        return tuple((now - before) / (1 + now) for now, before in self._squares)

    @cached_property
    def posterior_variances(self) -> tuple[float, ...]:
        """Variances of q(x_{t-1} | x_t, x0): arXiv:2006.11239, eq. 7.

        The first, which is 0, is replaced by the second.
        """
        later = [
            beta * before / (1 + before) * (1 + now) / now
            for beta, (now, before) in zip(self.betas[1:], self._squares[1:], strict=True)
        ]
        return (later[0], *later)

    @cached_property
    def gains(self) -> tuple[float, ...]:
        """SNR_{t-1} / SNR_t - 1 with SNR = 1 / sigma^2: the relative gain in a reverse step; 0 for t = 0."""
        return (0.0, *((now - before) / before for now, before in self._squares[1:]))


def even_steps(size: int, count: int) -> list[int]:
    """Return `count` integers from 0 to size - 1, both included, at an even fractional stride, rounded.

    The stride is accumulated as in published code, so that halves are rounded equally.
    """
    if not 1 <= count <= size:
        raise ValueError(f"cannot select {count} different timesteps from {size}")
    stride = (size - 1) / (count - 1) if count > 1 else 1.0
    return [round(position) for position in accumulate(repeat(stride, count - 1), initial=0.0)]


def integer_stride(size: int, count: int) -> list[int]:
    """Return `count` integers from 0 at the smallest integer stride that gives exactly `count` below `size`."""
    stride = -(-size // count)
    if len(range(0, size, stride)) != count:
        raise ValueError(f"no integer stride selects {count} of {size} timesteps")
    return list(range(0, size, stride))


def respaced(timesteps: int, notation: str) -> list[int]:
    """Return the timesteps that a respacing keeps, ascending.

    Args:
        timesteps: number of timesteps of the full chain.
        notation: as published: "250" spreads 250 evenly over the chain; "10,15,20" 10, 15 and 20 over three equal
            sections; "ddim25" takes 25 at an integer stride (arXiv:2010.02502, section 4.2).

    Raises:
        ValueError: for an invalid notation, or one that asks for more timesteps than there are.
    """
    if notation.startswith(DDIM):
        return integer_stride(timesteps, *_counts(notation.removeprefix(DDIM), max_sections=1))
    counts = _counts(notation, max_sections=timesteps)
    sizes = [timesteps // len(counts) + (i < timesteps % len(counts)) for i in range(len(counts))]
    starts = accumulate(sizes, initial=0)
    return [
        start + i for start, size, count in zip(starts, sizes, counts, strict=False) for i in even_steps(size, count)
    ]


def _counts(text: str, *, max_sections: int) -> Sequence[int]:
    counts = text.split(",")
    if len(counts) > max_sections or not all(count.strip().isdecimal() and int(count) > 0 for count in counts):
        raise ValueError(f"invalid respacing {text!r}: expected 250, or 10,15,20, or ddim25")
    return [int(count) for count in counts]


@cache
def trained_chain(betas: str, timesteps: int, beta_min: float, beta_max: float, respacing: str) -> Chain:
    """Return the chain of `timesteps` linear or cosine betas, or the part of it that `respacing` keeps."""
    levels = levels_of(cosine_betas(timesteps) if betas == "cosine" else linear_betas(timesteps, beta_min, beta_max))
    return Chain(tuple(levels[t] for t in respaced(timesteps, respacing)) if respacing else levels)


@lru_cache(maxsize=8)
def sampled_chain(sigmas: tuple[float, ...]) -> Chain:
    """Return the chain of a sampler's falling sigmas, whose last is 0."""
    return Chain(tuple(reversed(sigmas[:-1])))
