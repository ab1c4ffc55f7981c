"""Settings of the `offset_pair` pair sampler. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from pydantic import Field, model_validator

from sddit.errors import Problem
from sddit.interfaces import RecipeView, ViewSpec
from sddit_dit.view_params import MaskedViewParams, MaskRatio


class OffsetPairParams(MaskedViewParams):
    """Settings of the `offset_pair` pair sampler. Defaults are SRA's (arXiv:2505.02831), whose views hide nothing."""

    mask_ratio: MaskRatio = 0.0
    offset: float = Field(
        0.2,
        ge=0,
        description="The teacher is earlier by u, uniform between 0 and this value, in units of `time`. Published: "
        "0.2, and 200 steps of 1000 for DDPM. 0: the student's own time.",
    )
    time: Literal["linear", "native", "steps"] = Field(
        "linear",
        description="Time of the offset. linear: sigma / (sigma + sigma_data), the same for all schedules, which is "
        "that of SRA on linear paths; native: the schedule's own t; steps: t in whole steps, for DDPM.",
    )
    sigma_data: float = Field(
        1.0,
        gt=0,
        description="Standard deviation of the data in time linear. 1, our choice, gives the t of a linear path; SRA "
        "was not published for EDM.",
    )
    t_min: float | None = Field(
        None,
        ge=0,
        description="Earliest time of the teacher, in units of `time`, also for a student that is earlier. Default, "
        "ours: that of the lowest noise level of the schedule. Published: 0, and 1 for DDPM.",
    )

    null_view: bool = Field(
        False, description="Also make a teacher view with the null label, for guided targets (Self-Transcendence)."
    )

    @model_validator(mode="after")
    def _refuse_pure_noise(self) -> OffsetPairParams:
        if self.time == "linear" and max(self.offset, self.t_min or 0.0) >= 1:
            raise ValueError("offset and t_min are below 1 with time = 'linear', where 1 is noise without an image")
        return self

    def views(self) -> tuple[ViewSpec, ...]:
        teachers = ("teacher", "teacher_null") if self.null_view else ("teacher",)
        return self.masked("student"), *(ViewSpec(name, "teacher") for name in teachers)

    def idle(self, recipe: RecipeView) -> Iterable[str]:
        yield from super().idle(recipe)
        if self.offset == 0:
            yield from ("time", "sigma_data", "t_min")
        elif self.time != "linear":
            yield "sigma_data"

    def check(self, recipe: RecipeView) -> Iterable[Problem]:
        """Check that the earliest time has a noise level of the schedule, and that a null label is trained."""
        schedule = recipe.noise_schedule
        if self.null_view and (recipe.facts.num_classes == 0 or recipe.dataset.params.label_drop == 0):
            yield Problem(
                "SD-R108",
                "the teacher's second view has the null label, which is never trained",
                where="pair_sampler.null_view",
                got="true, without classes" if recipe.facts.num_classes == 0 else "true with dataset.label_drop = 0",
                expect="a null label that is trained",
                fix="dataset.label_drop = 0.1, or pair_sampler.null_view = false",
            )
        if self.t_min is None:
            return
        low, high = schedule.params.level_range if self.time == "linear" else schedule.params.t_range
        if self.time == "linear":
            low, high = (level / (level + self.sigma_data) for level in (low, high))
        if not low * (1 - 1e-9) <= self.t_min <= high:
            yield Problem(
                "SD-R108",
                "the teacher's earliest time is outside the schedule",
                where="pair_sampler.t_min",
                got=f"{self.t_min:g}",
                expect=f"{low:g} to {high:g}, the times of noise_schedule {schedule.component.name!r}",
                fix="remove pair_sampler.t_min",
            )

    def warnings(self, recipe: RecipeView) -> Iterable[str]:
        if self.time == "steps" and self.offset < 1:
            yield f"offset = {self.offset:g} is less than one step: the teacher is never earlier than the student"
