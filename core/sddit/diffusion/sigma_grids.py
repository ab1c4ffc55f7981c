"""Compute grids of noise levels that apply to every schedule. Torch-free, so that a dry run can use them."""

from __future__ import annotations

import math


def sigma_grid(steps: int, *, kind: str, sigma_min: float, sigma_max: float, rho: float) -> list[float]:
    """Return `steps` levels from sigma_max to sigma_min, both exact, then 0.

    kind "edm" is eq. 5 of EDM (arXiv:2206.00364), evenly spaced in sigma^(1/rho); "log" is evenly spaced in ln sigma,
    its limit for large rho. Eq. 5 is written relative to sigma_max, with expm1 and log1p, so that no rho overflows or
    merges levels.
    """
    fall = math.log(sigma_min / sigma_max)
    fractions = [i / (steps - 1) for i in range(1, steps - 1)]
    if kind == "edm":
        between = [rho * math.log1p(fraction * math.expm1(fall / rho)) for fraction in fractions]
    elif kind == "log":
        between = [fraction * fall for fraction in fractions]
    else:
        raise ValueError(f"unknown grid {kind!r}; expected 'edm' or 'log'")
    return [sigma_max, *(sigma_max * math.exp(level) for level in between), sigma_min, 0.0]
