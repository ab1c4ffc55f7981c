"""Averages of weights with power-function profiles, and how to combine stored ones into others (arXiv:2312.02696).

An average at step t weighs the weights at step tau in proportion to tau^gamma. Its relative width sigma_rel is the
standard deviation of that profile over t. Two such averages, stored at several steps, determine those of other widths:
the combination whose profile is nearest to the wanted one, in the least-squares sense. All numbers are float64.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]


@dataclass(frozen=True, slots=True)
class Profile:
    """The profile of an average: tau^gamma up to step t, with integral 1."""

    t: int  # optimizer steps taken
    gamma: float


def gamma_of(sigma_rel: float) -> float:
    """Return the exponent of a relative width: the largest real root of the cubic that `sigma_rel_of` leads to."""
    inverse = sigma_rel**-2
    roots = np.roots([1.0, 7.0, 16.0 - inverse, 12.0 - inverse])
    return float(max(root.real for root in roots if abs(root.imag) < 1e-9 * max(1.0, abs(root))))


def sigma_rel_of(gamma: float) -> float:
    """Return the relative width of an exponent."""
    return math.sqrt((gamma + 1) / ((gamma + 2) ** 2 * (gamma + 3)))


def decay_of(gamma: float, t: int) -> float:
    """Return the fraction of the average that step t keeps, t = 1, 2, ..."""
    return float((1 - 1 / t) ** (gamma + 1))


def inner_products(one: Sequence[Profile], two: Sequence[Profile]) -> Floats:
    """Return the integral of the product of each pair of profiles, [len(one), len(two)]."""
    t1, g1 = (np.array([getattr(p, key) for p in one], dtype=np.float64)[:, None] for key in ("t", "gamma"))
    t2, g2 = (np.array([getattr(p, key) for p in two], dtype=np.float64)[None, :] for key in ("t", "gamma"))
    exponent_of_later = np.where(t1 <= t2, g2, g1)
    earlier, later = np.minimum(t1, t2), np.maximum(t1, t2)
    products: Floats = (g1 + 1) * (g2 + 1) / (g1 + g2 + 1) * (earlier / later) ** exponent_of_later / later
    return products


def combination(stored: Sequence[Profile], wanted: Profile) -> Floats:
    """Return a factor for each stored average; their sum times the factors is nearest to the wanted average.

    The factors add up to 1 only if the stored profiles can represent the wanted one.
    """
    gram, target = inner_products(stored, stored), inner_products(stored, [wanted])[:, 0]
    scale = 1 / np.sqrt(np.diag(gram))  # profiles of early steps have large norms
    solved: Floats = scale * np.linalg.solve(gram * scale[:, None] * scale, target * scale)
    return solved
