"""Which trained timesteps a sampler visits. No torch, so that a recipe is refused before it trains."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from itertools import pairwise

from sddit.diffusion.sigma_grids import UNTRAINED, spaced
from sddit.errors import SdditError, error
from sddit_ddpm.chain import even_steps, whole_stride


def boundaries(levels: Sequence[float]) -> list[float]:
    """Where the nearest of the rising `levels` changes: halfway between each two."""
    return [(low + high) / 2 for low, high in pairwise(levels)]


def timesteps_on(
    levels: Sequence[float], steps: int, *, kind: str, sigma_min: float, sigma_max: float, rho: float
) -> list[int]:
    """The `steps` falling timesteps of a grid over the rising trained `levels`; none twice.

    kind "native" is even in t with both ends, rounded: the published respacing "250". "stride" is a whole stride from the
    lowest: "ddim25", which may stop short of the highest. "edm" and "log" take the trained level nearest to each of theirs,
    and where two of theirs lie nearest to one, the next trained level.

    Raises:
        SdditError: SD-T908 for levels beyond the trained ones, more steps than there are, or a stride that is not whole.
    """
    lowest, highest = levels[0], levels[-1]
    if sigma_min < lowest * (1 - 1e-6) or sigma_max > highest * (1 + 1e-6):
        raise error(
            UNTRAINED,
            "sampling asks for noise levels that were not trained",
            where="sampler.sigma_min" if sigma_min < lowest else "sampler.sigma_max",
            got=f"{sigma_min:g} to {sigma_max:g}",
            expect=f"levels within {lowest:g} to {highest:g}",
            fix="leave sampler.sigma_min and sampler.sigma_max out",
        )
    edges = boundaries(levels)
    first, last = bisect_left(edges, sigma_min), bisect_left(edges, sigma_max)
    size = last + 1 - first
    if steps > size:
        fix = f"sampler.steps = {size}" if size > 1 else "leave sampler.sigma_min and sampler.sigma_max out"
        raise _too_many(steps, kind, expect=f"at most {size}", fix=fix)
    match kind:
        case "native":
            return [first + i for i in reversed(even_steps(size, steps))]
        case "stride":
            return [first + i for i in reversed(_strided(size, steps))]
    wanted = spaced(steps, kind=kind, sigma_min=sigma_min, sigma_max=sigma_max, rho=rho)[:-1]
    return falling([bisect_left(edges, level) for level in wanted], first, last)


def falling(wanted: Sequence[int], lowest: int, highest: int) -> list[int]:
    """The strictly falling whole numbers within lowest ... highest next to the falling `wanted`, where two of them meet.

    Each is as wanted, or the next below the one before it; none is so low that those after it find no place.
    """
    found: list[int] = []
    for place, number in enumerate(wanted):
        room = lowest + len(wanted) - 1 - place
        found.append(max(room, min(number, found[-1] - 1 if found else highest)))
    return found


def _strided(size: int, steps: int) -> list[int]:
    try:
        return whole_stride(size, steps)
    except ValueError:
        stride = -(-size // steps)
        fewer, more = -(-size // stride), -(-size // (stride - 1))
        raise _too_many(
            steps,
            "stride",
            expect=f"a number of steps that a whole stride gives: {fewer} or {more}",
            fix=f'sampler.steps = {fewer}, or sampler.grid = "native"',
        ) from None


def _too_many(steps: int, kind: str, *, expect: str, fix: str) -> SdditError:
    return error(
        UNTRAINED,
        "the trained noise levels do not give so many sampling steps",
        where="sampler.steps",
        got=f"{steps} on grid {kind!r}",
        expect=expect,
        fix=fix,
    )
