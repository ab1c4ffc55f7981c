"""Schedules of values over a run: weights, momenta, temperatures, ratios and learning rates."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

Shape = Literal["linear", "linspace", "cosine", "exponential", "step"]

DECAY = 7.0
"""Rate of the exponential shape: e^-7 = 0.0009 of the change remains at `until` and after it."""


def _check_step_or_fraction(value: int | float) -> int | float:
    if isinstance(value, float) and not 0 <= value <= 1:
        raise ValueError("a float is a fraction of the run, 0.0 to 1.0; write a number of steps as an integer")
    if isinstance(value, int) and value < 0:
        raise ValueError("a number of steps cannot be negative")
    return value


StepOrFraction = Annotated[int | float, AfterValidator(_check_step_or_fraction)]
"""A point in training: an int is a step, a float in [0, 1] a fraction of the planned run."""


def step_of(point: int | float, total: int) -> float:
    """Return the step of a `StepOrFraction` in a run of `total` steps."""
    return float(point) if isinstance(point, int) else point * total


class Ramp(BaseModel):
    """A value that changes from `start` to `end` between two points in training, and then stays constant."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False, populate_by_name=True)

    start: float = Field(description="Value before and at `from`.")
    end: float = Field(description="Value at and after `until`.")
    shape: Shape = Field(
        "linear",
        description="linear; linspace (linear, but complete at the last step before `until`, as the warm-ups of DINO "
        "are, arXiv:2104.14294); cosine (half a period); exponential (e^-7u of the change remains at the fraction u, "
        "so that 0.0009 of it is never made, as in MaskDiT's code); step (jumps at `until`).",
    )
    power: float = Field(
        1.0, gt=0, le=100, description="Exponent on the remaining fraction: above 1, most of the change comes early."
    )
    from_: StepOrFraction = Field(
        0, alias="from", description="When the change begins: steps, or a fraction such as 0.1."
    )
    until: StepOrFraction = Field(1.0, description="When the change is complete: steps, or a fraction such as 0.5.")
    every: int = Field(
        1,
        ge=1,
        description="Hold each value for this number of steps, such as those of an epoch: DINO's temperature changes "
        "once per epoch.",
        json_schema_extra={"omit_default": True},
    )

    @model_validator(mode="after")
    def _refuse_idle_keys(self) -> Ramp:
        for key in ("power", "every"):
            if self.shape == "step" and getattr(self, key) != 1:
                raise ValueError(f"{key}: has no effect with shape step, which changes at once")
        return self


Value = float | Ramp
"""A number, or `{ start, end, shape, power, from, until, every }`."""


def value_at(value: Value, step: int, total: int) -> float:
    """Return the value of a schedule at `step` of a run planned for `total` steps.

    A ramp reaches `end` exactly at `until`, except for the exponential shape, which only comes close. With shape cosine
    over the entire run it is the momentum schedule of DINO (arXiv:2104.14294): end + (start - end) (1 + cos(pi u)) / 2
    with u = step / total.
    """
    if not isinstance(value, Ramp):
        return float(value)
    u = _fraction(value, step, total)
    if u == 1.0 and value.shape != "exponential":
        return value.end  # exactly, which the cosine of a rounded pi / 2 is not
    remaining = {
        "linear": 1.0 - u,
        "linspace": 1.0 - u,
        "cosine": (1.0 + math.cos(math.pi * u)) / 2,
        "exponential": math.exp(-DECAY * u),
        "step": 1.0,
    }[value.shape]
    return value.end + (value.start - value.end) * math.pow(remaining, value.power)


def _fraction(ramp: Ramp, step: int, total: int) -> float:
    """Return the fraction of a ramp that is complete at `step`, 0 to 1."""
    begin, finish = step_of(ramp.from_, total), step_of(ramp.until, total)
    if finish <= begin or step >= finish:
        return 1.0
    done = step - begin if ramp.every == 1 else (step - begin) // ramp.every
    length = (finish - begin) / ramp.every - (ramp.shape == "linspace")
    return min(max(done / length, 0.0), 1.0) if length > 0 else 1.0


def extremes(value: Value) -> tuple[float, float]:
    """Return the lowest and highest value of a schedule."""
    return (min(value.start, value.end), max(value.start, value.end)) if isinstance(value, Ramp) else (value, value)


def is_zero(value: Value) -> bool:
    """Return whether a schedule is zero for the entire run. A loss with such a weight is not built."""
    return extremes(value) == (0.0, 0.0)


class Between:
    """Validator for `Value`: requires all its values to be in [low, high]."""

    def __init__(self, low: float, high: float = math.inf) -> None:
        self.low, self.high = low, high

    def __call__(self, value: Value) -> Value:
        lowest, highest = extremes(value)
        if lowest < self.low or highest > self.high:
            if math.isinf(self.high):
                raise ValueError(f"must be at least {self.low:g}")
            raise ValueError(f"must stay between {self.low:g} and {self.high:g}")
        return value


def bounded(low: float, high: float = math.inf) -> AfterValidator:
    """Return a validator: `Annotated[Value, bounded(0, 1)]` is a schedule with all values within the bounds."""
    return AfterValidator(Between(low, high))
