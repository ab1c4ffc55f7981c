"""Settings of the samplers and of guidance. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Literal

from pydantic import Field, model_validator

from sddit.errors import Problem
from sddit.interfaces import GuidanceParams, RecipeView, SamplerParams


class EulerParams(SamplerParams):
    """Settings of the `euler` sampler."""

    churn: float = Field(0.0, ge=0, description="S_churn: amount of fresh noise added over all steps; 0: none, an ODE.")
    churn_min: float = Field(0.0, ge=0, description="S_min: minimum noise level at which noise is added.")
    churn_max: float | None = Field(
        None, gt=0, description="S_max: maximum noise level at which noise is added; default: no limit."
    )
    churn_noise: float = Field(1.0, gt=0, description="S_noise: standard deviation of the added noise.")

    @model_validator(mode="after")
    def _rises(self) -> EulerParams:
        for low, high in (("sigma_min", "sigma_max"), ("churn_min", "churn_max")):
            lower, upper = getattr(self, low), getattr(self, high)
            if lower is not None and upper is not None and lower >= upper:
                raise ValueError(f"{low} must be below {high}")
        return self

    def idle(self, recipe: RecipeView) -> Iterable[str]:
        return () if self.churn else ("churn_min", "churn_max", "churn_noise")


class HeunParams(EulerParams):
    """Settings of the `heun` sampler."""

    coordinates: Literal["ve", "native"] = Field(
        "ve",
        description="Coordinates in which steps are linear. ve: x / alpha over sigma / alpha, as EDM; native: the "
        "schedule's x, alpha and sigma; for the flow schedule Heun's method in t, as SiT. Euler is the same in both.",
    )

    @property
    def evaluations(self) -> int:
        return 2 * self.steps - 1  # two per step, one in the last step, which goes to 0

    def idle(self, recipe: RecipeView) -> Iterable[str]:
        schedule = recipe.noise_schedule.params
        time_is_sigma = schedule.t_range == schedule.level_range  # alpha = 1: both coordinates are equal
        return (*super().idle(recipe), *(("coordinates",) if time_is_sigma else ()))


class NoGuidanceParams(GuidanceParams):
    """Settings of the `none` rule: none."""


class CFGParams(GuidanceParams):
    """Settings of classifier-free guidance."""

    scale: float = Field(
        1.5, ge=0, description="Guidance scale. 0: unconditional; 1: conditional; above 1: away from unconditional."
    )
    shape: Literal["constant", "power_cosine"] = Field(
        "constant",
        description="constant: the same scale at every noise level; power_cosine: 1 + (scale - 1) "
        "(1 - cos(pi (1 - t / T)^power)) / 2, which grows from 1 to the scale as noise falls (MDT, arXiv:2303.14389).",
    )
    power: float = Field(
        4.0, gt=0, description="Exponent of power_cosine: higher values delay guidance to lower noise. MDT: 4."
    )
    interval: tuple[float, float] | None = Field(
        None,
        strict=False,
        description="Guide only at sigma in [low, high]; conditional elsewhere (arXiv:2404.07724).",
    )
    channels: Annotated[int, Field(ge=1)] | Literal["all"] = Field(
        "all", description="Number of guided channels, from the first; the others stay conditional. DiT: 3 of 4."
    )

    @property
    def evaluations(self) -> int:
        one_label = self.scale == 0 and self.shape == "constant" and self.channels == "all"
        return 1 if self.scale == 1 or one_label else 2

    @property
    def needs_null_label(self) -> bool:
        return self.scale != 1

    def idle(self, recipe: RecipeView) -> Iterable[str]:
        if self.scale == 1:
            return ("shape", "power", "interval", "channels")
        return ("power",) if self.shape == "constant" else ()

    def check(self, recipe: RecipeView) -> Iterable[Problem]:
        has = recipe.facts.image[0]
        if self.channels != "all" and self.channels > has:
            yield Problem(
                "SD-R108",
                "more guided channels than the data has",
                where="guidance.channels",
                got=str(self.channels),
                expect=f'"all", or 1 to {has}',
            )

    @model_validator(mode="after")
    def _rises(self) -> CFGParams:
        _refuse_bad_interval(self.interval)
        return self


class PathDropParams(GuidanceParams):
    """Settings of guidance by the dense path, that of a network without its sparse span."""

    scale: float = Field(
        3.0, ge=0, description="Guidance scale. 1: none; above 1: away from the dense path. SPRINT, as released: 3."
    )
    label: Literal["null", "same"] = Field(
        "null",
        description="Label on the dense path: the null label, since this pass replaces that of classifier-free "
        "guidance (SPRINT), or that of the image.",
    )
    interval: tuple[float, float] | None = Field(
        None, strict=False, description="Guide only at sigma in [low, high]; the full network alone elsewhere."
    )

    @property
    def evaluations(self) -> int:
        return 1 + self.dense_evaluations

    @property
    def dense_evaluations(self) -> int:
        return 0 if self.scale == 1 else 1

    @property
    def needs_null_label(self) -> bool:
        return self.scale != 1 and self.label == "null"

    def idle(self, recipe: RecipeView) -> Iterable[str]:
        return ("label", "interval") if self.scale == 1 else ()

    @model_validator(mode="after")
    def _rises(self) -> PathDropParams:
        _refuse_bad_interval(self.interval)
        return self


def _refuse_bad_interval(interval: tuple[float, float] | None) -> None:
    if interval and not 0 <= interval[0] < interval[1]:
        raise ValueError("interval must be [low, high] with 0 <= low < high")
