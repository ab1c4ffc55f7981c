"""Settings of the DDPM schedule, of the hybrid loss and of the samplers. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

from pydantic import Field, model_validator

from sddit.diffusion.time_sampling import TimeSampledParams
from sddit.errors import Problem, SdditError
from sddit.interfaces import (
    Cost,
    LossParams,
    Needs,
    RecipeView,
    SamplerParams,
    Want,
)
from sddit_ddpm.chain import Chain, respaced, trained_chain
from sddit_ddpm.grids import timesteps_on

MAX_SIGMA = 1e6
"""Maximum noise level of a chain: beyond it a float32 x_t has no image content left."""


class DDPMParams(TimeSampledParams):
    """Settings of the `ddpm` schedule, in which t counts timesteps from 0, the minimum noise."""

    timesteps: int = Field(1000, ge=2, le=10_000, description="T, the number of trained noise levels.")
    betas: Literal["linear", "cosine"] = Field(
        "linear",
        description="linear: evenly spaced from beta_min to beta_max for any number of timesteps (arXiv:2006.11239); "
        "cosine: those of arXiv:2102.09672, eq. 17.",
    )
    beta_min: float = Field(1e-4, ge=1e-8, lt=1, description="Variance of the noise that the first timestep adds.")
    beta_max: float = Field(0.02, ge=1e-8, lt=1, description="Variance of the noise that the last timestep adds.")
    respacing: str = Field(
        "",
        description='Train and sample only some timesteps, in the notation of published code: "250" evenly, "10,15,20" '
        'in equal sections, "ddim25" at an integer stride. Empty: all. The network gets t of the full chain.',
    )
    learned_variance: bool = Field(
        True, description="Double the output channels to predict the variance of a reverse step."
    )

    @property
    def outputs(self) -> int:
        return 2 if self.learned_variance else 1

    @property
    def chain(self) -> Chain:
        """Trained chain."""
        return trained_chain(self.betas, self.timesteps, self.beta_min, self.beta_max, self.respacing)

    @property
    def timestep_map(self) -> list[int]:
        """Trained timesteps of the full chain, ascending: the network inputs for t = 0, 1, ..."""
        return respaced(self.timesteps, self.respacing or str(self.timesteps))

    @property
    def t_range(self) -> tuple[float, float]:
        return (0.0, len(self.chain.levels) - 1.0)

    @property
    def level_range(self) -> tuple[float, float]:
        return (self.chain.levels[0], self.chain.levels[-1])

    @property
    def grids(self) -> tuple[str, ...]:
        return ("edm", "log", "native", "stride")

    def idle(self, recipe: RecipeView) -> Iterable[str]:
        return ("beta_min", "beta_max") if self.betas == "cosine" else ()

    def check(self, recipe: RecipeView) -> Iterable[Problem]:
        """Check that the trained noise levels provide the sampler's grid. The core checks everything else."""
        sampler, (lowest, highest) = recipe.sampler.params, self.level_range
        low = lowest if sampler.sigma_min is None else sampler.sigma_min
        high = highest if sampler.sigma_max is None else sampler.sigma_max
        if low >= high or sampler.grid not in self.grids:
            return
        try:
            timesteps_on(
                self.chain.levels, sampler.steps, kind=sampler.grid, sigma_min=low, sigma_max=high, rho=sampler.rho
            )
        except SdditError as error:
            yield from error.problems

    @model_validator(mode="after")
    def _makes_a_chain(self) -> DDPMParams:
        if self.beta_min > self.beta_max:
            raise ValueError("beta_min must not be above beta_max")
        if len(self.timestep_map) < 2:
            raise ValueError("respacing must keep at least two timesteps")
        if not self.chain.levels[-1] <= MAX_SIGMA:
            raise ValueError("no image content is left at the last timestep: lower beta_max or timesteps")
        return self


class HybridParams(LossParams):
    """Settings of the `hybrid` loss."""

    mse_weight: float = Field(1.0, ge=0, description="Weight of the squared error of the noise.")
    vb_weight: float = Field(
        1.0,
        ge=0,
        description="Weight of the variational bound's term at t, in bits per dimension. 1 in DiT: equal to the 0.001 "
        "of arXiv:2102.09672, which weights the sum over 1000 timesteps.",
    )
    vb_trains: Literal["variance", "all"] = Field(
        "variance",
        description="variance: the bound trains only the variance, with the estimated image held constant; all: it "
        "trains both.",
    )
    weighting: Literal["none", "min_snr"] = Field(
        "none",
        description="none: equal weight for all timesteps. min_snr: weight min(SNR, snr_gamma) / SNR for the squared "
        "error (arXiv:2303.09556), as in MDTv2, but not for the bound.",
    )
    snr_gamma: float = Field(5.0, gt=0, description="Signal-to-noise ratio above which the min_snr weight is below 1.")
    over_views: Literal["mean", "sum"] = Field(
        "mean", description="Average several student views, or sum them, as in MDT."
    )

    def needs(self) -> Needs:
        return Needs(student=Want(output=True))

    def cost(self, *_: Any, **__: Any) -> Cost:
        """Return zero: no heads, and negligible arithmetic per pixel."""
        return Cost()

    def idle(self, recipe: RecipeView) -> Iterable[str]:
        if self.vb_weight == 0:
            yield "vb_trains"
        if self.mse_weight == 0:
            yield "weighting"
        if self.mse_weight == 0 or self.weighting == "none":
            yield "snr_gamma"
        if len(recipe.views_of(self)) == 1:
            yield "over_views"

    def check(self, recipe: RecipeView) -> Iterable[Problem]:
        """Check that there is a chain, and a variance for the bound to train."""
        schedule, where = recipe.noise_schedule, recipe.key_of(self)
        if not isinstance(schedule.params, DDPMParams):
            yield Problem(
                "SD-R108",
                "the hybrid loss needs the chain of a DDPM schedule",
                where=where,
                got=f"noise schedule {schedule.component.name!r}",
                expect='noise_schedule.name = "ddpm"',
                fix='noise_schedule.name = "ddpm", or another loss: sddit-run show losses',
            )
        elif self.vb_weight > 0 and schedule.params.outputs < 2:
            yield Problem(
                "SD-R108",
                "the variational bound trains a variance, but this model has none",
                where=f"{where}.vb_weight",
                got=f"{self.vb_weight:g} with noise_schedule.learned_variance = false",
                expect="a learned variance, or 0",
                fix=f"noise_schedule.learned_variance = true, or {where}.vb_weight = 0",
            )

    @model_validator(mode="after")
    def _trains_the_image(self) -> HybridParams:
        if self.mse_weight == 0 and (self.vb_weight == 0 or self.vb_trains == "variance"):
            raise ValueError('mse_weight = 0 needs vb_weight above 0 and vb_trains = "all" to learn the image')
        return self


class AncestralParams(SamplerParams):
    """Settings of the `ancestral` sampler."""

    steps: int = Field(250, ge=2, le=10_000, description="Number of noise levels from the maximum to zero.")
    grid: str = Field("native", description="Spacing of noise levels: native, edm, log or another of the schedule.")
    clip: float | None = Field(
        None,
        gt=0,
        description="Clip the estimated clean image to [-clip, clip] at each step; default: no clipping, as in DiT.",
    )

    @property
    def needs_variance(self) -> bool:
        return True


class DDIMParams(SamplerParams):
    """Settings of the `ddim` sampler."""

    steps: int = Field(50, ge=2, le=10_000, description="Number of noise levels from the maximum to zero.")
    grid: str = Field("native", description="Spacing of noise levels: native, edm, log or another of the schedule.")
    eta: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Amount of fresh noise: 0 is an ODE, 1 the chain's posterior (arXiv:2010.02502, eq. 16).",
    )
    clip: float | None = Field(
        None, gt=0, description="Clip the estimated clean image to [-clip, clip] at each step; default: no clipping."
    )
