"""Value schedules and moments."""

from __future__ import annotations

import math
from typing import Annotated

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from sddit.value_schedules import Ramp, StepOrFraction, Value, bounded, extremes, is_zero, step_of, value_at

LEFT = {"exponential": math.exp(-7)}
"""Fraction of the change that a shape never makes."""
SHAPES = ["linear", "linspace", "cosine", "exponential", "step"]
MOMENT = TypeAdapter(StepOrFraction)


@pytest.mark.parametrize(
    ("shape", "at"),
    [
        ("linear", [2.0, 1.75, 1.5, 1.25, 1.0]),
        ("cosine", [2.0, 1.5 + math.sqrt(0.5) / 2, 1.5, 1.5 - math.sqrt(0.5) / 2, 1.0]),
        ("step", [2.0, 2.0, 2.0, 2.0, 1.0]),
        ("linspace", [2.0, 2 - 10 / 39, 2 - 20 / 39, 2 - 30 / 39, 1.0]),
        ("exponential", [2.0, 1 + math.exp(-1.75), 1 + math.exp(-3.5), 1 + math.exp(-5.25), 1 + math.exp(-7)]),
    ],
)
def test_each_shape_by_hand(shape: str, at: list[float]) -> None:
    ramp = Ramp(start=2.0, end=1.0, shape=shape, from_=10, until=50)
    assert [value_at(ramp, step, 100) for step in (10, 20, 30, 40, 50)] == pytest.approx(at, abs=1e-15)
    assert (value_at(ramp, 0, 100), value_at(ramp, 99, 100)) == (2.0, 1.0 + LEFT.get(shape, 0.0))


def test_a_power_bends_the_way() -> None:
    """The cosine to the second is the decay of MaskDiT's mask ratio, cos(pi u / 2)^4 (arXiv:2306.09305)."""
    squared, plain = (Ramp(start=0.5, end=0.0, shape="cosine", power=power) for power in (2.0, 1.0))
    expected = [0.5 * math.cos(math.pi * u / 8 / 2) ** 4 for u in range(8)]
    assert [value_at(squared, u, 8) for u in range(8)] == pytest.approx(expected, rel=1e-12)
    assert value_at(plain, 3, 8) != pytest.approx(expected[3], rel=1e-2)
    with pytest.raises(ValidationError, match="no effect with shape step"):
        Ramp(start=1.0, end=0.0, shape="step", power=2.0)
    with pytest.raises(ValidationError, match="every: has no effect with shape step"):
        Ramp(start=1.0, end=0.0, shape="step", every=2)


def test_the_exponential_is_the_decay_of_maskdit() -> None:
    """The ratio is minimum + (ratio - minimum) e^-7u; the power is a factor on the rate 7."""
    ramp = Ramp(start=0.5, end=0.1, shape="exponential")
    expected = [0.1 + 0.4 * math.exp(-7 * min(u / 50, 1)) for u in range(60)]
    assert [value_at(ramp, u, 50) for u in range(60)] == pytest.approx(expected, rel=1e-14)
    faster = Ramp(start=0.5, end=0.1, shape="exponential", power=2.0)
    assert value_at(faster, 5, 50) == pytest.approx(0.1 + 0.4 * math.exp(-14 * 5 / 50), rel=1e-14)
    assert value_at(Ramp(start=0.5, end=0.1), 5, 50) != pytest.approx(expected[5], rel=0.1)


def test_linspace_and_every_are_the_warm_up_of_dino() -> None:
    """Per step for the learning rate; per epoch for the temperature, with both ends among the epochs (numpy)."""
    per_step = Ramp(start=0.0, end=1.0, shape="linspace", until=10)
    assert [value_at(per_step, i, 100) for i in range(12)] == pytest.approx([*np.linspace(0, 1, 10), 1, 1], abs=1e-15)
    per_epoch = Ramp(start=0.04, end=0.07, shape="linspace", until=30 * 8, every=8)
    temperatures = np.repeat(np.linspace(0.04, 0.07, 30), 8)
    assert [value_at(per_epoch, i, 1000) for i in range(240)] == pytest.approx(temperatures, abs=1e-15)
    assert value_at(per_epoch, 240, 1000) == 0.07
    late = Ramp(start=0.04, end=0.07, shape="linspace", from_=80, until=80 + 240, every=8)
    assert [value_at(late, 80 + i, 1000) for i in range(240)] == pytest.approx(temperatures, abs=1e-15)
    plain = Ramp(start=0.04, end=0.07, until=30 * 8)
    assert value_at(plain, 239, 1000) != pytest.approx(temperatures[-1], rel=1e-4)
    assert value_at(Ramp(start=0.0, end=1.0, shape="linspace", until=1), 0, 10) == 1.0


def test_the_cosine_over_the_run_is_the_momentum_of_dino() -> None:
    ramp = Ramp(start=0.996, end=1.0, shape="cosine")
    for step in range(0, 1001, 50):
        dino = 1.0 - (1.0 - 0.996) * (math.cos(math.pi * step / 1000) + 1) / 2  # arXiv:2104.14294, section 3.1
        assert value_at(ramp, step, 1000) == pytest.approx(dino, abs=1e-15)


def test_shares_and_steps_name_the_same_moment() -> None:
    assert [step_of(m, 200) for m in (50, 0.25, 0, 0.0, 1, 1.0)] == [50, 50, 0, 0, 1, 200]
    by_share, by_steps = Ramp(start=0, end=1, from_=0.1, until=0.5), Ramp(start=0, end=1, from_=20, until=100)
    assert [value_at(by_share, s, 200) for s in range(200)] == [value_at(by_steps, s, 200) for s in range(200)]


@pytest.mark.parametrize("shape", SHAPES)
def test_a_ramp_without_length_jumps(shape: str) -> None:
    ramp = Ramp(start=0.0, end=1.0, shape=shape, from_=5, until=5)
    assert [value_at(ramp, step, 10) for step in (4, 5, 6)] == [1.0 - LEFT.get(shape, 0.0)] * 3


@given(
    st.floats(-9, 9),
    st.floats(-9, 9),
    st.sampled_from(SHAPES),
    st.integers(0, 60),
    st.integers(0, 60),
    st.integers(0, 60),
)
def test_a_ramp_stays_between_its_ends_and_moves_one_way(
    start: float, end: float, shape: str, begin: int, finish: int, step: int
) -> None:
    ramp = Ramp(start=start, end=end, shape=shape, from_=begin, until=finish)
    low, high = extremes(ramp)
    now, then = value_at(ramp, step, 60), value_at(ramp, step + 1, 60)
    assert low - 1e-12 <= now <= high + 1e-12
    assert (then - now) * (end - start) >= -1e-12
    assert value_at(ramp, finish, 60) == (end + (start - end) * LEFT[shape] if shape in LEFT else end)


def test_a_number_is_a_constant() -> None:
    assert [value_at(0.3, step, 10) for step in (0, 5, 10)] == [0.3] * 3
    assert extremes(0.3) == (0.3, 0.3)


def test_only_what_is_zero_throughout_is_zero() -> None:
    assert is_zero(0.0) and is_zero(Ramp(start=0, end=0))
    assert not is_zero(Ramp(start=0, end=1)) and not is_zero(Ramp(start=1, end=0)) and not is_zero(1e-9)


@pytest.mark.parametrize("moment", [0, 7, 10**9, 0.0, 0.5, 1.0])
def test_moments_are_steps_or_shares(moment: float) -> None:
    kept = MOMENT.validate_python(moment, strict=True)
    assert (kept, type(kept)) == (moment, type(moment))  # 1 is a step and 1.0 the end of the run


@pytest.mark.parametrize("moment", [-1, 1.5, -0.5, True, "0.5", None])
def test_what_is_neither_is_refused(moment: object) -> None:
    with pytest.raises(ValidationError):
        MOMENT.validate_python(moment, strict=True)


def test_bounds_hold_for_every_value_of_a_schedule() -> None:
    share: TypeAdapter[Value] = TypeAdapter(Annotated[Value, bounded(0, 1)])
    for good in (0.0, 1.0, {"start": 0.0, "end": 1.0}):
        share.validate_python(good)
    for bad in (-0.1, 1.1, {"start": 0.0, "end": 1.1}, {"start": -0.1, "end": 1.0}):
        with pytest.raises(ValidationError, match="must stay between 0 and 1"):
            share.validate_python(bad)


@pytest.mark.parametrize(
    "given", [{"start": 1.0}, {"start": 1.0, "end": 0.0, "shap": "step"}, {"start": math.nan, "end": 0.0}]
)
def test_a_ramp_is_strict(given: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Ramp.model_validate(given)


def test_a_ramp_is_written_as_it_is_read() -> None:
    given = {"start": 1.0, "end": 0.0, "shape": "cosine", "power": 2.0, "from": 3, "until": 0.5, "every": 2}
    assert Ramp.model_validate(given).model_dump(by_alias=True) == given


def test_a_bound_on_one_side_names_that_side() -> None:
    positive: TypeAdapter[Value] = TypeAdapter(Annotated[Value, bounded(0)])
    with pytest.raises(ValidationError, match="must be at least 0"):
        positive.validate_python(-1.0)
