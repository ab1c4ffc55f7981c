"""Grids of noise levels that are the same for every schedule. No torch, so that a dry run may ask for one."""

from __future__ import annotations

import math

UNTRAINED = "SD-T908"
"""The code of a refusal by a schedule that trains a fixed list of levels, which the asked ones are not among."""


def sigma_grid(steps: int, *, kind: str, sigma_min: float, sigma_max: float, rho: float) -> list[float]:
    """`steps` levels from sigma_max to sigma_min, both exact, then 0.

    kind "edm" is eq. 5 of EDM (arXiv:2206.00364), even in sigma^(1/rho); "log" is even in ln sigma, its limit for large
    rho. Eq. 5 is written relative to sigma_max, with expm1 and log1p, so that no rho overflows or rounds levels together.
    """
    fall = math.log(sigma_min / sigma_max)
    shares = [i / (steps - 1) for i in range(1, steps - 1)]
    if kind == "edm":
        between = [rho * math.log1p(share * math.expm1(fall / rho)) for share in shares]
    elif kind == "log":
        between = [share * fall for share in shares]
    else:
        raise ValueError(f"no grid {kind!r} that is the same for every schedule; there are 'edm' and 'log'")
    return [sigma_max, *(sigma_max * math.exp(level) for level in between), sigma_min, 0.0]
