"""EDM (arXiv:2206.00364): its noise levels, its preconditioning, and the denoising loss."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from sddit import Registry, hookimpl
from sddit.interfaces import Loss, LossParams, Needs, NoiseSchedule, NoiseScheduleParams, Want


class EDMParams(NoiseScheduleParams):
    """Settings of the `edm` schedule, in which t is sigma itself."""

    p_mean: float = Field(-1.2, description="Mean of ln sigma in training.")
    p_std: float = Field(1.2, gt=0, description="Standard deviation of ln sigma in training.")
    sigma_data: Annotated[float, Field(gt=0)] | Literal["measured"] = Field(
        0.5, description="Standard deviation of the data; `measured`: that of the training split."
    )
    sigma_min: float = Field(0.002, gt=0, description="Lowest noise level that is sampled.")
    sigma_max: float = Field(80.0, gt=0, description="Highest noise level that is sampled.")

    @property
    def t_range(self) -> tuple[float, float]:
        return (self.sigma_min, self.sigma_max)

    @model_validator(mode="after")
    def _rises(self) -> EDMParams:
        if self.sigma_min >= self.sigma_max:
            raise ValueError("sigma_min must be below sigma_max")
        return self


class DenoisingParams(LossParams):
    """Settings of the `denoising` loss."""

    space: Literal["native", "x0", "eps"] = Field(
        "native",
        description="What the squared error is taken of: the network's own output (for EDM this is lambda(sigma) times "
        "the error of x0), the clean image, or the noise.",
    )
    tokens: Literal["all", "visible"] = Field(
        "all", description="all: every token; visible: only those that the view does not hide."
    )

    def needs(self) -> Needs:
        return Needs(student=Want(output=True))


@hookimpl
def register_noise_schedules(registry: Registry[NoiseSchedule]) -> None:
    registry.add(
        "edm",
        "sddit_edm.schedule:EDM",
        params=EDMParams,
        summary="x = x0 + sigma eps with ln sigma normal in training, and EDM's preconditioning.",
        paper="arXiv:2206.00364",
    )


@hookimpl
def register_losses(registry: Registry[Loss]) -> None:
    registry.add(
        "denoising",
        "sddit_edm.loss:Denoising",
        params=DenoisingParams,
        summary="Mean squared error of the network's output, or of the clean image or noise it stands for.",
        paper="arXiv:2206.00364",
    )
