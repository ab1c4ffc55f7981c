"""What the core itself offers: data sets, feature extractors, optimizers and trackers. A plugin like any other."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from sddit.hookspecs import hookimpl
from sddit.interfaces import Optimizer, OptimizerParams, Tracker, TrackerParams
from sddit.registry import Registry

Beta = Annotated[float, Field(ge=0, lt=1)]


class AdamWParams(OptimizerParams):
    """Settings of `adamw`. The defaults are DiT's (arXiv:2212.09748): no decay."""

    betas: tuple[Beta, Beta] = Field(
        (0.9, 0.999), strict=False, description="Decay of the averages of the gradient and of its square."
    )
    eps: float = Field(1e-8, gt=0, description="Added to the root of the second average.")
    weight_decay: float = Field(0.0, ge=0, description="Share of a weight taken away at each step, times lr.")
    decay_all: bool = Field(False, description="Decay biases, norms and other one-dimensional weights too.")

    @property
    def state_per_parameter(self) -> int:
        return 2


class CsvParams(TrackerParams):
    """`csv` has no settings."""


class TensorboardParams(TrackerParams):
    """`tensorboard` has no settings."""


@hookimpl
def register_optimizers(registry: Registry[Optimizer]) -> None:
    registry.add(
        "adamw",
        "sddit.optimizers:AdamW",
        params=AdamWParams,
        summary="Adam with decoupled weight decay.",
        paper="arXiv:1711.05101",
    )


@hookimpl
def register_trackers(registry: Registry[Tracker]) -> None:
    registry.add(
        "csv", "sddit.trackers:Csv", params=CsvParams, summary="metrics.csv in the run folder, one line a logged step."
    )
    registry.add(
        "tensorboard",
        "sddit.trackers:Tensorboard",
        params=TensorboardParams,
        summary="TensorBoard event files in the run folder.",
        requires=("tensorboard",),
    )
