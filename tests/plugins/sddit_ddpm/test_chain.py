"""Test the algebra of the chain and the selection of timesteps."""

from __future__ import annotations

import math
from decimal import Decimal, localcontext
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sddit.errors import SdditError
from sddit_ddpm.chain import Chain, cosine_betas, even_steps, integer_stride, levels_of, linear_betas, respaced
from sddit_ddpm.grids import falling, timesteps_on

LEVELS = levels_of(linear_betas(1000, 1e-4, 0.02))
ENDS = {"sigma_min": LEVELS[0], "sigma_max": LEVELS[-1], "rho": 7.0}


@pytest.mark.parametrize("betas", [linear_betas(1000, 1e-4, 0.02), cosine_betas(1000)], ids=["linear", "cosine"])
def test_levels_are_those_of_the_product_of_alphas(betas: list[float]) -> None:
    """Compare with abar in 50 digits: levels are exact to 13 digits, 1 - abar in float64 only to 12."""
    abar, worst = Decimal(1), 0.0
    with localcontext(prec=50):
        for beta, level in zip(betas, levels_of(betas), strict=True):
            abar *= 1 - Decimal(beta)
            worst = max(worst, abs(float(Decimal(level) / ((1 - abar) / abar).sqrt() - 1)))
    assert worst < 1e-13
    assert levels_of([0.36])[0] == pytest.approx(0.75, rel=1e-15)


def test_betas_are_recovered_from_levels() -> None:
    betas = linear_betas(1000, 1e-4, 0.02)
    assert (betas[0], betas[-1]) == (1e-4, 0.02)
    assert list(Chain(LEVELS).betas) == pytest.approx(betas, rel=1e-11)
    assert list(Chain(levels_of(linear_betas(1000, 1e-4, 0.0201))).betas) != pytest.approx(betas, rel=1e-4)


def test_variances_and_gains_by_their_definitions() -> None:
    chain = Chain(LEVELS)
    abar = [1 / (1 + level**2) for level in LEVELS]
    posterior = [
        beta * (1 - before) / (1 - now) for beta, (before, now) in zip(chain.betas[1:], pairwise(abar), strict=True)
    ]
    assert list(chain.posterior_variances[1:]) == pytest.approx(posterior, rel=1e-9)
    assert chain.posterior_variances[0] == chain.posterior_variances[1]
    snr = [level**-2 for level in LEVELS]
    assert list(chain.gains) == pytest.approx([0.0, *(b / a - 1 for b, a in pairwise(snr))], rel=1e-9)
    assert max(chain.betas[t] / chain.posterior_variances[t] for t in range(1000)) > 2


def test_cosine_betas_are_capped() -> None:
    betas = cosine_betas(1000)
    assert betas[-1] == 0.999
    assert all(low < high for low, high in pairwise(betas))
    assert math.prod(1 - beta for beta in betas[:500]) == pytest.approx(0.493844, rel=1e-5)


# Respacing


@given(data=st.data(), size=st.integers(2, 3000))
def test_even_steps_take_both_ends(data: st.DataObject, size: int) -> None:
    count = data.draw(st.integers(2, size))
    steps = even_steps(size, count)
    assert (len(steps), steps[0], steps[-1]) == (count, 0, size - 1)
    assert all(0 < b - a <= (size - 1) / (count - 1) + 1 for a, b in pairwise(steps))


@given(size=st.integers(1, 3000), count=st.integers(1, 3000))
def test_an_integer_stride_gives_the_exact_count_or_is_rejected(size: int, count: int) -> None:
    possible = [stride for stride in range(1, size + 1) if len(range(0, size, stride)) == count]
    if possible:
        assert integer_stride(size, count) == list(range(0, size, possible[0]))
    else:
        with pytest.raises(ValueError, match="no integer stride"):
            integer_stride(size, count)


def test_the_published_notation() -> None:
    assert respaced(1000, "1000") == list(range(1000))
    assert respaced(1000, "ddim25") == list(range(0, 1000, 40))
    assert respaced(10, "2") == [0, 9]
    assert respaced(10, "2,3") == [0, 4, 5, 7, 9]
    assert respaced(11, "1,1,1") == [0, 4, 8]
    assert respaced(1000, " 10, 15,20 ") == respaced(1000, "10,15,20")


@pytest.mark.parametrize(
    "notation", ["", "ten", "0", "-5", "1001", "400,400,400", "ddim", "ddim37", "ddim5,5", "1.5", "²"]
)
def test_invalid_respacings_are_rejected(notation: str) -> None:
    with pytest.raises(ValueError, match=r"invalid respacing|no integer stride|different timesteps"):
        respaced(1000, notation)


# Grids


@given(data=st.data(), low=st.integers(0, 50), size=st.integers(1, 60))
def test_equal_numbers_are_separated(data: st.DataObject, low: int, size: int) -> None:
    high = low + size - 1
    wanted = data.draw(
        st.lists(st.integers(low, high), min_size=1, max_size=size).map(lambda x: sorted(x, reverse=True))
    )
    found = falling(wanted, low, high)
    assert len(found) == len(wanted)
    assert all(a > b for a, b in pairwise(found))
    assert set(found) <= set(range(low, high + 1))
    if len(set(wanted)) == len(wanted):
        assert found == wanted


def test_numbers_move_as_little_as_possible() -> None:
    assert falling([9, 9, 9, 2, 2], 0, 9) == [9, 8, 7, 2, 1]
    assert falling([3, 0, 0, 0], 0, 9) == [3, 2, 1, 0]
    assert falling([9, 8, 8, 5], 5, 9) == [9, 8, 7, 5]


@pytest.mark.parametrize("kind", ["edm", "log", "native"])
@pytest.mark.parametrize("steps", [2, 9, 50, 250, 1000])
def test_a_grid_has_the_requested_number_of_trained_levels_with_both_ends(kind: str, steps: int) -> None:
    visited = timesteps_on(LEVELS, steps, kind=kind, **ENDS)
    assert (len(visited), visited[0], visited[-1]) == (steps, 999, 0)
    assert all(a > b for a, b in pairwise(visited))


def test_a_grid_takes_the_nearest_levels() -> None:
    from sddit.diffusion.sigma_grids import sigma_grid

    wanted = sigma_grid(20, kind="edm", **ENDS)[:-1]
    visited = timesteps_on(LEVELS, 20, kind="edm", **ENDS)
    assert visited == [min(range(1000), key=lambda t: abs(LEVELS[t] - level)) for level in wanted]
    assert visited != timesteps_on(LEVELS, 20, kind="edm", **{**ENDS, "rho": 5.0})


def test_a_grid_over_some_of_the_levels() -> None:
    ends = {"sigma_min": LEVELS[10] * 1.001, "sigma_max": LEVELS[100] * 0.999, "rho": 7.0}
    assert timesteps_on(LEVELS, 10, kind="native", **ends) == [100, 90, 80, 70, 60, 50, 40, 30, 20, 10]
    assert timesteps_on(LEVELS, 3, kind="stride", **ends) == [72, 41, 10]
    assert timesteps_on(LEVELS, 91, kind="log", **ends) == list(range(100, 9, -1))


@pytest.mark.parametrize(
    ("steps", "kind", "ends", "says"),
    [
        (1001, "native", {}, "at most 1000"),
        (1001, "edm", {}, "at most 1000"),
        (37, "stride", {}, "36 or 38"),
        (18, "edm", {"sigma_max": 200.0}, "levels within 0.01"),
        (18, "edm", {"sigma_max": LEVELS[-1] * 1.001}, "levels within 0.01"),
        (18, "log", {"sigma_min": LEVELS[0] * 0.999}, "levels within 0.01"),
        (2, "native", {"sigma_min": 1.0, "sigma_max": 1.0001}, "at most 1"),
    ],
)
def test_unavailable_grids_are_rejected(steps: int, kind: str, ends: dict[str, float], says: str) -> None:
    with pytest.raises(SdditError, match=says) as refused:
        timesteps_on(LEVELS, steps, kind=kind, **{**ENDS, **ends})
    assert [problem.code for problem in refused.value.problems] == ["SD-T908"]
