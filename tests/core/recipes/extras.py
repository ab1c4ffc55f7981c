"""A one-file plugin for the tests of recipes: faces that refuse, lack, or leave unsaid what the toys provide."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated, Literal

from pydantic import Field

from sddit import hookimpl
from sddit import interfaces as face
from sddit.errors import Problem
from sddit.interfaces import RecipeView
from sddit.plugins.registry import Registry
from sddit.testing.toys.params import ToyOptimizerParams
from sddit.value_schedules import Value

NEVER = "nowhere:Built"  # these tests build nothing


class InnerParams(face.Params):
    depth: int = Field(2, ge=1, le=64, description="Blocks.")
    shape: tuple[int, int] = Field((1, 2), description="Two whole numbers.")


class SolidParams(face.BackboneParams):
    """No masks, no class token, no stated cost."""

    patch: int = Field(description="Side of a patch: has no default.", ge=1, le=64)
    size: Literal["S", "B"] = Field("S", description="A name.")
    kind: Literal["", "A", "B"] = Field("", description="A name, or none.")
    inner: InnerParams | None = Field(None, description="A table in a table.")

    def grid(self, shapes: face.Shapes) -> tuple[int, int]:
        if shapes.image[1] % self.patch:
            raise ValueError(f"patch {self.patch} does not divide {shapes.image[1]}")
        return shapes.image[1] // self.patch, shapes.image[2] // self.patch

    def width(self, tap: face.Tap) -> int:
        if tap != "encoder":
            raise ValueError("there is only 'encoder'")
        return 8


class MeasurableParams(face.NoiseScheduleParams):
    sigma_data: Annotated[float, Field(gt=0)] | Literal["measured"] = Field(
        0.5, description="Standard deviation of the data."
    )

    @property
    def t_range(self) -> tuple[float, float]:
        return 0.01, 10.0


class WantingParams(face.LossParams):
    """Settings of a loss that requests what they name."""

    tap: face.Tap = Field("encoder", description="Where it reads.")
    cls: bool = Field(False, description="Whether it reads the class token.")
    teacher: bool = Field(False, description="Whether it needs a teacher.")
    coupled: bool = Field(False, description="Whether it is one number for a whole batch.")
    reported: int | None = Field(None, description="Nothing.")

    def needs(self) -> face.Needs:
        want = face.Want(taps=(self.tap,), cls=self.cls)
        return face.Needs(want, want if self.teacher else None)

    @property
    def couples_samples(self) -> bool:
        return self.coupled

    def check(self, recipe: RecipeView) -> Iterable[Problem]:
        if self.reported == 13:
            yield Problem("SD-R108", "thirteen", where="backbone")
        if self.reported == 14:
            raise RuntimeError("fourteen")


class SilentParams(face.LossParams):
    """Forgets to say what it needs."""


class UnpricedParams(face.LossParams):
    def needs(self) -> face.Needs:
        return face.Needs(face.Want(output=True))

    puzzled: bool = Field(False, description="Fail to state it.")

    def cost(self, backbone: face.BackboneParams, shapes: face.Shapes, view: face.ViewSpec, num_kept: int) -> None:
        if self.puzzled:
            raise RuntimeError("puzzled")


class NarrowParams(face.AttentionParams):
    @property
    def dtypes(self) -> tuple[str, ...]:
        return ("bf16",)

    @property
    def backward_devices(self) -> tuple[str, ...]:
        return ("cuda",)


class GuidedParams(face.GuidanceParams):
    scale: float = Field(2.0, ge=0, description="Strength.")
    shape: Value = Field(1.0, description="Of no effect at strength 1.")
    dense: int = Field(0, ge=0, description="Evaluations on the dense path.")

    @property
    def evaluations(self) -> int:
        return 2

    @property
    def dense_evaluations(self) -> int:
        return self.dense

    @property
    def needs_null_label(self) -> bool:
        return True

    def idle(self, recipe: RecipeView) -> Iterable[str]:
        if self.scale == 13:
            raise RuntimeError("thirteen")
        return ("shape",) if self.scale == 1 else ()


class ThreeViewsParams(face.PairSamplerParams):
    def views(self) -> Sequence[face.ViewSpec]:  # type: ignore[override]  # a plugin's author may be careless
        return [face.ViewSpec("one"), face.ViewSpec("two"), face.ViewSpec("old", "teacher")]


@hookimpl
def register_backbones(registry: Registry[face.Backbone]) -> None:
    registry.add("solid", NEVER, params=SolidParams, summary="Bare.")


@hookimpl
def register_noise_schedules(registry: Registry[face.NoiseSchedule]) -> None:
    registry.add("measurable", NEVER, params=MeasurableParams, summary="Takes the data's std.")


@hookimpl
def register_pair_samplers(registry: Registry[face.PairSampler]) -> None:
    registry.add("three", NEVER, params=ThreeViewsParams, summary="Two students and a teacher.")


@hookimpl
def register_losses(registry: Registry[face.Loss]) -> None:
    registry.add("wanting", NEVER, params=WantingParams, summary="Requests what its settings name.")
    registry.add("silent", NEVER, params=SilentParams, summary="Answers nothing.")
    registry.add("unpriced", NEVER, params=UnpricedParams, summary="States no cost.")
    registry.add("absent", NEVER, params=SilentParams, summary="Needs a package.", requires=("no-such-package",))


@hookimpl
def register_attention(registry: Registry[face.Attention]) -> None:
    registry.add("sdpa", NEVER, params=face.AttentionParams, summary="The default.")
    registry.add("narrow", NEVER, params=NarrowParams, summary="bf16, trained on CUDA only.")


@hookimpl
def register_optimizers(registry: Registry[face.Optimizer]) -> None:
    registry.add("adamw", NEVER, params=ToyOptimizerParams, summary="The default.")


@hookimpl
def register_trackers(registry: Registry[face.Tracker]) -> None:
    registry.add("silent", NEVER, params=face.TrackerParams, summary="A second tracker.")


@hookimpl
def register_guidances(registry: Registry[face.Guidance]) -> None:
    registry.add("none", NEVER, params=face.GuidanceParams, summary="The default.")
    registry.add("guided", NEVER, params=GuidedParams, summary="Needs dropped labels.")
