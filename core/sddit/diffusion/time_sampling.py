"""Draw the noise levels of training from one family of densities, for every schedule. Torch is imported only to draw.

A density is one of the time tau = sigma / (alpha + sigma), from 0, no noise, to 1, pure noise: the t of the linear path
x = (1 - t) x0 + t eps. Every schedule has this time, so that one table means the same noise levels in each of them.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from sddit.interfaces.noise_schedule import NoiseScheduleParams
from sddit.interfaces.params import Params

if TYPE_CHECKING:
    from torch import Tensor

MAX_PLATEAU_STD = math.sqrt(2)
"""Standard deviation above which a logit-normal density can have two modes."""


class TimeSampling(Params):
    """Density of the training time tau = sigma / (alpha + sigma) in (0, 1), which grows with noise."""

    density: Literal["uniform", "logit_normal", "plateau"] = Field(
        description="uniform; logit_normal: ln(tau / (1 - tau)) = ln(sigma / alpha) is normal (arXiv:2403.03206, and "
        "EDM's p_mean and p_std); plateau: logit_normal up to its mode, and constant from there to tau = 1, so that "
        "high noise remains well trained."
    )
    mean: float | None = Field(
        None, ge=-20, le=20, description="Mean of ln(tau / (1 - tau)), before the shift; default 0. Not for uniform."
    )
    std: float | None = Field(
        None, gt=0, le=20, description="Standard deviation of ln(tau / (1 - tau)); default 1. Not for uniform."
    )
    shift: float = Field(
        1.0,
        ge=1e-3,
        le=1e3,
        description="Multiply every noise level sigma / alpha by this number a: tau becomes a tau / (1 + (a - 1) tau) "
        "(arXiv:2403.03206). Published for latents: sqrt(numbers in an image / 4096). The plateau begins at the mode "
        "of the shifted density.",
    )

    @model_validator(mode="before")
    @classmethod
    def _default_normal(cls, values: object) -> object:
        """Fill in the defaults of the normal distribution, so that a resolved recipe shows them."""
        if not isinstance(values, dict) or values.get("density") == "uniform":
            return values
        return {**values, **{key: value for key, value in NORMAL.items() if values.get(key) is None}}

    @model_validator(mode="after")
    def _refuse_contradictions(self) -> TimeSampling:
        if self.density == "uniform" and (idle := [key for key in NORMAL if getattr(self, key) is not None]):
            raise ValueError(f'{", ".join(idle)}: no effect with density "uniform"')
        if self.density == "plateau" and self.normal[1] > MAX_PLATEAU_STD:
            raise ValueError("std must be at most 1.41 with density plateau: a wider density can have two modes")
        return self

    @property
    def normal(self) -> tuple[float, float]:
        """Mean and standard deviation of ln(sigma / alpha), with the shift."""
        mean, std = (
            default if value is None else value
            for value, default in zip((self.mean, self.std), NORMAL.values(), strict=True)
        )
        return mean + math.log(self.shift), std


LEVELS = (1e-30, 2.0**24)
"""Lowest and highest noise level that is drawn: float32 distinguishes their times from 0 and 1."""
NORMAL = {"mean": 0.0, "std": 1.0}
"""Defaults of the normal distribution of ln(tau / (1 - tau))."""


class TimeSampledParams(NoiseScheduleParams):
    """Settings of a noise schedule whose training times can be drawn from the common family of densities."""

    time_sampling: TimeSampling | None = Field(
        None,
        description="Density of the noise levels in training, the same table for every schedule: { density, mean, "
        "std, shift }. If not set: the schedule's own.",
        json_schema_extra={"omit_default": True},
    )


def levels_from_uniform(sampling: TimeSampling, u: Tensor) -> Tensor:
    """Return noise levels sigma / alpha by the inverse distribution function: u [B] in (0, 1) -> [B], float64.

    They are within `LEVELS`, where no schedule rounds its time to one without noise or without an image.
    """
    return _levels(sampling, u.double()).clamp(*LEVELS)


def _levels(sampling: TimeSampling, u: Tensor) -> Tensor:
    import torch

    mean, std = sampling.normal
    match sampling.density:
        case "uniform":
            return sampling.shift * u / (1 - u)
        case "logit_normal":
            return torch.exp(mean + std * torch.special.ndtri(u))
        case "plateau":
            plateau = Plateau(mean, std)
            below = torch.exp(mean + std * torch.special.ndtri((u * plateau.total).clamp(max=plateau.below)))
            remaining = (1 - u) * plateau.total / plateau.height  # 1 - tau on the plateau
            return torch.where(u * plateau.total <= plateau.below, below, (1 - remaining) / remaining)


class Plateau:
    """A logit-normal density up to its mode, continued as a constant, before it is divided by its `total` mass."""

    def __init__(self, mean: float, std: float) -> None:
        logit = mode_logit(mean, std)
        self.mode = 1 / (1 + math.exp(-logit))
        z = (logit - mean) / std
        self.below = math.erfc(-z / math.sqrt(2)) / 2  # mass up to the mode
        self.height = math.exp(-(z**2) / 2) / (math.sqrt(2 * math.pi) * std * self.mode * (1 - self.mode))
        self.total = self.below + self.height * (1 - self.mode)


def mode_logit(mean: float, std: float) -> float:
    """Return the logit of the mode of a logit-normal density with std <= sqrt(2), by bisection.

    There the derivative of its logarithm, 2 tau - 1 - (logit tau - mean) / std^2, falls through 0.
    """
    low, high = mean - std**2, mean + std**2
    for _ in range(200):
        middle = (low + high) / 2
        if math.tanh(middle / 2) > (middle - mean) / std**2:
            low = middle
        else:
            high = middle
    return (low + high) / 2
