"""Settings of the samplers and of guidance. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Annotated, Literal

from pydantic import Field, model_validator

from sddit.errors import Problem
from sddit.interfaces import GuidanceParams, RecipeView, SamplerParams, SecondNetwork


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


def refuse_reversed(interval: tuple[float, float] | None) -> None:
    """Raise ValueError unless an interval of noise levels rises from 0 or above."""
    if interval and not 0 <= interval[0] < interval[1]:
        raise ValueError("interval must be [low, high] with 0 <= low < high")


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
        refuse_reversed(self.interval)
        return self


class InternalParams(GuidanceParams):
    """Settings of Internal Guidance."""

    scale: float = Field(
        1.4,
        ge=0,
        description="Guidance scale w in D_i + w (D - D_i), D_i the prediction of the head; 1: no guidance. Published "
        "for SiT-XL/2 together with classifier-free guidance of scale 1.35.",
    )
    interval: tuple[float, float] | None = Field(
        None, strict=False, description="Guide only at sigma in [low, high]; elsewhere D. Default: at every level."
    )
    head: str = Field("inner", min_length=1, description="Name of the auxiliary head of the backbone.")
    cfg: CFGParams | None = Field(
        None,
        description="Classifier-free guidance on top, with the keys of guidance `cfg`: this rule is applied to the "
        "conditional and the unconditional prediction alike, then they are combined; our choice. Default: none.",
    )

    @property
    def evaluations(self) -> int:
        return self.cfg.evaluations if self.cfg else 1

    @property
    def needs_null_label(self) -> bool:
        return self.cfg is not None and self.cfg.needs_null_label

    @property
    def heads(self) -> tuple[str, ...]:
        return () if self.scale == 1 else (self.head,)

    def idle(self, recipe: RecipeView) -> Iterable[str]:
        return ("interval", "head") if self.scale == 1 else ()

    def check(self, recipe: RecipeView) -> Iterable[Problem]:
        for problem in self.cfg.check(recipe) if self.cfg else ():
            yield replace(problem, where=problem.where.replace("guidance.", "guidance.cfg."))

    @model_validator(mode="after")
    def _rises(self) -> InternalParams:
        refuse_reversed(self.interval)
        return self


class AutoguidanceParams(GuidanceParams):
    """Settings of guidance by a weaker network."""

    scale: float = Field(
        2.0,
        ge=0,
        description="Guidance scale w in D_weak + w (D - D_weak); 1: no guidance. The default is our choice.",
    )
    interval: tuple[float, float] | None = Field(
        None, strict=False, description="Guide only at sigma in [low, high]; elsewhere D. Default: at every level."
    )
    weak: str = Field(
        "",
        description="Folder of the weaker network: a run, such as a smaller or a shorter one, or this one when it is "
        "sampled, or an exported folder, relative to the recipe. Not part of the run id; the hash of its weights is. "
        "Empty: this run.",
        json_schema_extra={"path": True, "free": True},
    )
    weak_weights: str = Field(
        "",
        description="Which of its weights: the label of an [ema], or `student`. Empty: those that it samples with.",
    )
    weak_step: int | None = Field(
        None, ge=0, description="Step of its checkpoint. Default: the newest.", json_schema_extra={"free": True}
    )
    weak_sha256: str = Field(
        "", pattern="^([0-9a-f]{64})?$", description="Hash that the weight file must have; filled in if not set."
    )

    @property
    def second_network(self) -> SecondNetwork | None:
        if self.scale == 1:
            return None
        return SecondNetwork(self.weak, self.weak_weights, self.weak_step, self.weak_sha256)

    def with_second_network(self, found: SecondNetwork) -> AutoguidanceParams:
        named = {"weak_weights": found.weights, "weak_step": found.step, "weak_sha256": found.sha256}
        return self.model_copy(update=named)

    def idle(self, recipe: RecipeView) -> Iterable[str]:
        keys = ("interval", "weak", "weak_weights", "weak_step", "weak_sha256")
        return keys if self.scale == 1 else ()

    @model_validator(mode="after")
    def _fits(self) -> AutoguidanceParams:
        refuse_reversed(self.interval)
        if not self.weak and self.weak_step is not None:
            raise ValueError(
                "weak_step without weak: for an earlier checkpoint of this run, name its folder in weak when it is "
                "sampled"
            )
        return self
