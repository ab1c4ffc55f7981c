"""Settings of the `cosine_flow` schedule. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Literal

from pydantic import Field, model_validator

from sddit.interfaces import NoiseScheduleParams, RecipeView

QUARTER = math.pi / 2
"""Angle of the path from t = 0 to t = 1."""


class CosineFlowParams(NoiseScheduleParams):
    """Settings of the `cosine_flow` schedule, x = cos(pi t / 2) x0 + sin(pi t / 2) eps."""

    t_sampling: Literal["uniform", "logit_normal"] = Field(
        "uniform",
        description="Distribution of training times: uniform in (0, 1), or ln(sigma / alpha) normal, the noise levels "
        "of flow with the same keys.",
    )
    logit_mean: float = Field(0.0, description="Mean of ln(sigma / alpha) in training.")
    logit_std: float = Field(1.0, gt=0, description="Standard deviation of ln(sigma / alpha) in training.")
    t_min: float = Field(0.001, gt=0, lt=1, description="Minimum time in sampling.")
    t_max: float = Field(
        0.995, gt=0, lt=1, description="Maximum time in sampling, sigma / alpha = 127; at 1 no image content is left."
    )
    direction: Literal["noise", "data"] = Field(
        "noise",
        description="Time input and output sign of the network. noise: input t, output dx/dt, as in REPA; data: input "
        "1 - t, output -dx/dt, as in SiT.",
    )

    @property
    def t_range(self) -> tuple[float, float]:
        return (self.t_min, self.t_max)

    @property
    def level_range(self) -> tuple[float, float]:
        return (math.tan(QUARTER * self.t_min), math.tan(QUARTER * self.t_max))

    def idle(self, recipe: RecipeView) -> Iterable[str]:
        return ("logit_mean", "logit_std") if self.t_sampling == "uniform" else ()

    @model_validator(mode="after")
    def _rises(self) -> CosineFlowParams:
        if self.t_min >= self.t_max:
            raise ValueError("t_min must be below t_max")
        return self
