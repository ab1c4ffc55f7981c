"""The chain of a DDPM (arXiv:2006.11239) in Python floats: noise levels, reverse steps, respacing. No torch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache
from itertools import accumulate, pairwise, repeat

DDIM = "ddim"
"""Prefix of the respacings with a whole stride."""


def linear_betas(count: int, lowest: float, highest: float) -> list[float]:
    """`count` betas, even from `lowest` to `highest`: DDPM (arXiv:2006.11239), section 4."""
    return [lowest + (highest - lowest) * i / (count - 1) for i in range(count)]


def cosine_betas(count: int) -> list[float]:
    """Betas of abar = cos^2((u + s) / (1 + s) pi / 2) with s = 0.008, none above 0.999: arXiv:2102.09672, eq. 17."""
    abar = [math.cos((i / count + 0.008) / 1.008 * math.pi / 2) ** 2 for i in range(count + 1)]
    return [min(1 - following / before, 0.999) for before, following in pairwise(abar)]


def levels_of(betas: Iterable[float]) -> tuple[float, ...]:
    """Noise levels sigma_t = sqrt((1 - abar_t) / abar_t), rising.

    abar_t is the product of 1 - beta up to t, so 1 + sigma_t^2 grows by the factor 1 / (1 - beta_t) at each step. Written
    for sigma^2 itself, nothing cancels where the noise is small.
    """
    squares = accumulate(betas, lambda square, beta: (square + beta) / (1 - beta), initial=0.0)
    return tuple(math.sqrt(square) for square in squares)[1:]


@dataclass(frozen=True)
class Chain:
    """x_t = sqrt(1 - beta_t) x_{t-1} + sqrt(beta_t) eps, seen as its rising noise levels sigma_t, t = 0 ... T - 1.

    Any rising levels are such a chain: abar = 1 / (1 + sigma^2) and beta_t = 1 - abar_t / abar_{t-1}, with abar_{-1} = 1.
    So the levels that a sampler visits are the respaced chain (arXiv:2102.09672, eq. 19), whatever model gave them.
    Variances are those of x_t itself, not of x_t / sqrt(abar_t).
    """

    levels: tuple[float, ...]

    @cached_property
    def _squares(self) -> list[tuple[float, float]]:
        """(sigma_t^2, sigma_{t-1}^2) for each t."""
        squares = [level**2 for level in self.levels]
        return list(zip(squares, [0.0, *squares], strict=False))

    @cached_property
    def betas(self) -> tuple[float, ...]:
        """beta_t."""
        return tuple((now - before) / (1 + now) for now, before in self._squares)

    @cached_property
    def posterior_variances(self) -> tuple[float, ...]:
        """Variance of q(x_{t-1} | x_t, x0): arXiv:2006.11239, eq. 7. The first, which is 0, is that of the step after it."""
        later = [
            beta * before / (1 + before) * (1 + now) / now
            for beta, (now, before) in zip(self.betas[1:], self._squares[1:], strict=True)
        ]
        return (later[0], *later)

    @cached_property
    def gains(self) -> tuple[float, ...]:
        """SNR_{t-1} / SNR_t - 1: how far one step back raises the signal-to-noise ratio 1 / sigma^2; 0 for the first."""
        return (0.0, *((now - before) / before for now, before in self._squares[1:]))


def even_steps(size: int, count: int) -> list[int]:
    """`count` numbers from 0 to size - 1, both included, at an even fractional stride, rounded.

    The stride is added up, as published: so a half rounds alike.
    """
    if not 1 <= count <= size:
        raise ValueError(f"no {count} different timesteps among {size}")
    stride = (size - 1) / (count - 1) if count > 1 else 1.0
    return [round(place) for place in accumulate(repeat(stride, count - 1), initial=0.0)]


def whole_stride(size: int, count: int) -> list[int]:
    """`count` numbers from 0 at the smallest whole stride that leaves exactly so many below `size`."""
    stride = -(-size // count)
    if len(range(0, size, stride)) != count:
        raise ValueError(f"no whole stride takes {count} of {size} timesteps")
    return list(range(0, size, stride))


def respaced(timesteps: int, notation: str) -> list[int]:
    """The timesteps that a respacing keeps, rising.

    Args:
        timesteps: of the whole chain.
        notation: as published: "250" spreads so many evenly over the chain; "10,15,20" so many over each of three equal
            sections; "ddim25" takes so many at a whole stride (arXiv:2010.02502, section 4.2).

    Raises:
        ValueError: for a notation that cannot be read, or asks for more timesteps than there are.
    """
    if notation.startswith(DDIM):
        return whole_stride(timesteps, *_counts(notation.removeprefix(DDIM), most=1))
    counts = _counts(notation, most=timesteps)
    sizes = [timesteps // len(counts) + (i < timesteps % len(counts)) for i in range(len(counts))]
    starts = accumulate(sizes, initial=0)
    return [
        start + i for start, size, count in zip(starts, sizes, counts, strict=False) for i in even_steps(size, count)
    ]


def _counts(text: str, *, most: int) -> Sequence[int]:
    counts = text.split(",")
    if len(counts) > most or not all(count.strip().isdecimal() and int(count) > 0 for count in counts):
        raise ValueError(f"cannot read {text!r}: write 250, or 10,15,20, or ddim25")
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
