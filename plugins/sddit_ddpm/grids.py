"""Select the trained timesteps that a sampler visits. No torch, so that a recipe is checked before training."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from itertools import pairwise

from sddit.diffusion.sigma_grids import sigma_grid
from sddit.errors import SdditError, error
from sddit_ddpm.chain import even_steps, integer_stride


def boundaries(levels: Sequence[float]) -> list[float]:
    """Return where the nearest of the ascending `levels` changes: the midpoints."""
    return [(low + high) / 2 for low, high in pairwise(levels)]


def timesteps_on(
    levels: Sequence[float], steps: int, *, kind: str, sigma_min: float, sigma_max: float, rho: float
) -> list[int]:
    """Return `steps` different timesteps of a grid over the ascending trained `levels`, descending.

    kind "native" is even in t with both ends, rounded: the published respacing "250". "stride" is an integer stride
    from the minimum: "ddim25", which may end below the maximum. "edm" and "log" take the trained level nearest to each
    of theirs, or the next trained level if it is already taken.

    Raises:
        SdditError: SD-T908 for noise levels outside the trained range, too many steps, or a non-integer stride.
    """
    lowest, highest = levels[0], levels[-1]
    if sigma_min < lowest * (1 - 1e-6) or sigma_max > highest * (1 + 1e-6):
        raise error(
            "SD-T908",
            "sampling needs noise levels that are not trained",
            where="sampler.sigma_min" if sigma_min < lowest else "sampler.sigma_max",
            got=f"{sigma_min:g} to {sigma_max:g}",
            expect=f"levels within {lowest:g} to {highest:g}",
            fix="remove sampler.sigma_min and sampler.sigma_max",
        )
    edges = boundaries(levels)
    first, last = bisect_left(edges, sigma_min), bisect_left(edges, sigma_max)
    size = last + 1 - first
    if steps > size:
        fix = f"sampler.steps = {size}" if size > 1 else "remove sampler.sigma_min and sampler.sigma_max"
        raise _too_many(steps, kind, expect=f"at most {size}", fix=fix)
    match kind:
        case "native":
            return [first + i for i in reversed(even_steps(size, steps))]
        case "stride":
            return [first + i for i in reversed(_strided(size, steps))]
    wanted = sigma_grid(steps, kind=kind, sigma_min=sigma_min, sigma_max=sigma_max, rho=rho)[:-1]
    return falling([bisect_left(edges, level) for level in wanted], first, last)


def falling(wanted: Sequence[int], lowest: int, highest: int) -> list[int]:
    """Make the falling integers `wanted` strictly falling within lowest ... highest.

    Each is as wanted or just below its predecessor, and high enough to leave integers for its successors.
    """
    found: list[int] = []
    for position, number in enumerate(wanted):
        minimum = lowest + len(wanted) - 1 - position
        found.append(max(minimum, min(number, found[-1] - 1 if found else highest)))
    return found


def _strided(size: int, steps: int) -> list[int]:
    try:
        return integer_stride(size, steps)
    except ValueError:
        stride = -(-size // steps)
        fewer, more = -(-size // stride), -(-size // (stride - 1))
        raise _too_many(
            steps,
            "stride",
            expect=f"a number of steps with an integer stride: {fewer} or {more}",
            fix=f'sampler.steps = {fewer}, or sampler.grid = "native"',
        ) from None


def _too_many(steps: int, kind: str, *, expect: str, fix: str) -> SdditError:
    return error(
        "SD-T908",
        "the trained noise levels do not allow this number of sampling steps",
        where="sampler.steps",
        got=f"{steps} on grid {kind!r}",
        expect=expect,
        fix=fix,
    )
