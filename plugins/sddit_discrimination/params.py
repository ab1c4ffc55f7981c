"""Settings of the `pf_ode` pair sampler and of the `discrimination` loss. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Literal

from pydantic import Field, model_validator

from sddit.errors import Problem
from sddit.evaluation.token_spread import SPREAD_MONITORS
from sddit.interfaces import (
    BackboneParams,
    Cost,
    LossParams,
    Monitor,
    Needs,
    RecipeView,
    Shapes,
    Tap,
    ViewSpec,
    Want,
)
from sddit.value_schedules import StepOrFraction, Value, bounded
from sddit_discrimination.monitors import SHORTCUT, monitors_of
from sddit_dit.view_params import MaskedViewParams, MaskRatio

USES = {"teacher_sigma": ("fixed", "below", "offset"), "teacher_offset": ("offset",)}
"""Modes of `teacher_noise` in which a key has an effect."""


class PfOdeParams(MaskedViewParams):
    """Settings of the `pf_ode` pair sampler. Noise levels are in variance-exploding coordinates, sigma / alpha."""

    mask_ratio: MaskRatio = 0.2
    teacher_noise: Literal["fixed", "same", "below", "offset"] = Field(
        "fixed",
        description="The teacher's noise level. fixed: teacher_sigma; same: the student's; below: uniform between "
        "teacher_sigma and the student's; offset: the student's minus a uniform fraction of teacher_offset.",
    )
    teacher_sigma: float = Field(
        0.002, gt=0, description="The teacher's noise level with fixed, and its minimum with below and offset."
    )
    teacher_offset: float = Field(
        0.2,
        gt=0,
        le=1,
        description="Only with offset: maximum decrease of tau = sigma / (1 + sigma), the time of the linear path "
        "through the same noisy image (SRA, arXiv:2505.02831).",
    )
    shared_noise: bool = Field(
        True, description="Use the same noise in both views, so that they are on one ray from the image."
    )
    teacher_label: Literal["same", "null"] = Field(
        "same", description="Label of the teacher: the student's, or the null label."
    )
    teacher_mask: Literal["none", "visible"] = Field(
        "none",
        description="Tokens of the teacher: all (none), or the student's visible ones. No effect at mask ratio 0.",
    )

    @model_validator(mode="after")
    def _all_keys_count(self) -> PfOdeParams:
        for key, modes in USES.items():
            if self.teacher_noise not in modes and getattr(self, key) != type(self).model_fields[key].default:
                raise ValueError(f"{key} has no effect with teacher_noise = {self.teacher_noise!r}: remove it")
        return self

    def views(self) -> tuple[ViewSpec, ...]:
        sees_all = self.teacher_mask == "none"
        teacher = ViewSpec("teacher", "teacher") if sees_all else self.masked("teacher", "teacher")
        return self.masked("student"), teacher

    def idle(self, recipe: RecipeView) -> Iterable[str]:
        return () if any(view.is_masked for view in self.views()) else ("mask_shape", "teacher_mask")

    def warnings(self, recipe: RecipeView) -> Iterable[str]:
        """Warn if student and teacher see the same image: agreement is then trivial at any value of the loss."""
        student, teacher = self.views()
        read = any(chosen.params.needs().teacher for chosen in recipe.active_losses.values())
        if read and self.teacher_noise == "same" and self.shared_noise and student.is_masked == teacher.is_masked:
            tokens = "the student's visible tokens" if student.is_masked else "no mask"
            yield (
                'student and teacher see the same image (teacher_noise = "same", shared_noise = true, '
                f"{tokens}): agreement between them is trivial and teaches nothing"
            )

    def check(self, recipe: RecipeView) -> Iterable[Problem]:
        low, high = recipe.noise_schedule.params.level_range
        if self.teacher_noise in USES["teacher_sigma"] and not low <= self.teacher_sigma <= high:
            yield Problem(
                "SD-R108",
                "the teacher's noise level is outside the schedule",
                where="pair_sampler.teacher_sigma",
                got=f"{self.teacher_sigma:g}",
                expect=f"{low:g} to {high:g}, the levels of noise_schedule {recipe.noise_schedule.component.name!r}",
                fix=f"pair_sampler.teacher_sigma = {min(max(self.teacher_sigma, low), high):g}",
            )
        if self.teacher_label == "null" and recipe.facts.num_classes == 0:
            yield Problem(
                "SD-R108",
                "the data has no labels, so the teacher always gets the null label",
                where="pair_sampler.teacher_label",
                got="null",
                expect="same",
                fix="remove pair_sampler.teacher_label",
            )
        elif self.teacher_label == "null" and recipe.dataset.params.label_drop == 0:
            yield Problem(
                "SD-R108",
                "the teacher gets the null label, which is never trained",
                where="pair_sampler.teacher_label",
                got="null with dataset.label_drop = 0",
                expect="a null label that is trained",
                fix='dataset.label_drop = 0.1, or pair_sampler.teacher_label = "same"',
            )


class DiscriminationParams(LossParams):
    """Settings of the `discrimination` loss. Defaults are iBOT's (arXiv:2111.07832), scaled to SD-DiT's 480 epochs."""

    weight: Annotated[Value, bounded(0)] = Field(
        0.1,
        description="lambda_D, unknown for SD-DiT: a value schedule. Constant 0 disables the loss and its teacher.",
    )
    tap: Tap = Field("encoder", description="Tap of the student's tokens.")
    teacher_tap: Tap | None = Field(None, description="Tap of the teacher's tokens; default: the student's tap.")
    cls_weight: float = Field(1.0, ge=0, description="w_cls, weight of the class-token part of this loss.")
    patch_weight: float = Field(1.0, ge=0, description="w_patch, weight of the patch-token part of this loss.")
    cls_source: Literal["token", "mean"] = Field(
        "token",
        description="Input of the class-token part: the backbone's class token, or the mean of the patch tokens "
        "visible to a network. No effect at cls_weight 0.",
    )
    prototypes: int = Field(8192, ge=2, le=10**6, description="K, number of outputs of the head.")
    hidden: int = Field(2048, ge=1, le=65_536, description="Width of the head's hidden layers.")
    bottleneck: int = Field(256, ge=1, le=65_536, description="Width of the normalized vector before the prototypes.")
    layers: int = Field(3, ge=2, le=16, description="Number of Linear layers before the prototypes.")
    shared_head: bool = Field(
        True, description="Share prototypes between class and patch tokens, in addition to the layers before."
    )
    norm_last_layer: bool = Field(False, description="Freeze the gain of each prototype at 1.")
    student_temp: float = Field(0.1, gt=0, description="tau_s, temperature of the student.")
    teacher_temp: Annotated[Value, bounded(1e-4)] = Field(
        default={"start": 0.04, "end": 0.07, "until": 0.0625},
        validate_default=True,
        description="tau_t, temperature of the teacher: a value schedule. Default: 0.04 to 0.07 over 30 of 480 epochs.",
    )
    centering: Literal["mean", "sinkhorn", "none"] = Field(
        "mean",
        description="Protection against collapse to one prototype. mean: subtract a running mean from the teacher's "
        "logits (DINO); sinkhorn: balance its assignments over the batch (SwAV, arXiv:2006.09882); none: nothing.",
    )
    center_momentum: float = Field(
        0.9, ge=0, lt=1, description="Decay rate of the running mean. Only with centering mean."
    )
    sinkhorn_iterations: int = Field(
        3, ge=1, le=100, description="Number of balancing iterations. Only with centering sinkhorn."
    )
    freeze_last: StepOrFraction = Field(
        0.002,
        description="Freeze the prototypes until this step or fraction of the run. 1 of 480 epochs by default.",
    )

    @model_validator(mode="after")
    def _all_keys_count(self) -> DiscriminationParams:
        if self.cls_weight == self.patch_weight == 0:
            raise ValueError("cls_weight and patch_weight are both 0: set weight = 0 instead")
        if not self.shared_head and 0 in (self.cls_weight, self.patch_weight):
            raise ValueError("shared_head = false has no effect if cls_weight or patch_weight is 0: remove it")
        return self

    @property
    def taps(self) -> tuple[Tap, Tap]:
        """Taps of the student and the teacher."""
        return self.tap, self.tap if self.teacher_tap is None else self.teacher_tap

    @property
    def couples_samples(self) -> bool:
        return self.centering == "sinkhorn"

    def needs(self) -> Needs:
        cls = self.cls_weight > 0 and self.cls_source == "token"
        student, teacher = self.taps
        return Needs(student=Want(taps=(student,), cls=cls), teacher=Want(taps=(teacher,), cls=cls))

    def idle(self, recipe: RecipeView) -> Iterable[str]:
        if self.centering != "mean":
            yield "center_momentum"
        if self.centering != "sinkhorn":
            yield "sinkhorn_iterations"
        if self.cls_weight == 0:
            yield "cls_source"

    def check(self, recipe: RecipeView) -> Iterable[Problem]:
        try:
            student, teacher = (recipe.backbone.params.width(tap) for tap in self.taps)
        except ValueError:  # the core reports a tap that does not exist
            return
        if student != teacher:
            where = recipe.key_of(self)
            yield Problem(
                "SD-R108",
                "one head cannot process tokens of two widths",
                where=f"{where}.teacher_tap",
                got=f"{teacher} at {self.taps[1]!r}, {student} at {self.taps[0]!r}",
                expect="taps of one width",
                fix=f"remove {where}.teacher_tap, or choose a block of the same span",
            )

    def cost(self, backbone: BackboneParams, shapes: Shapes, view: ViewSpec, num_kept: int) -> Cost:
        """Return the cost of the head on one view. The teacher's keeps no activations."""
        width = backbone.width(self.tap)
        inner = (self.layers - 2) * self.hidden
        mlp = (width + inner + self.bottleneck) * self.hidden
        last = self.bottleneck * self.prototypes
        tokens = (self.cls_weight > 0) + num_kept * (self.patch_weight > 0)
        flops = 2.0 * tokens * (mlp + last)
        biases = (self.layers - 1) * self.hidden + self.bottleneck
        gains = 0 if self.norm_last_layer else self.prototypes
        copies = 1 if self.shared_head else 2
        parameters = mlp + biases + copies * (last + gains)
        if view.network == "teacher":
            return Cost(parameters, flops)
        activations = width + 2 * (self.layers - 1) * self.hidden + 2 * self.bottleneck + 2 * self.prototypes
        return Cost(parameters, flops, float(tokens * activations))

    def monitors(self) -> tuple[Monitor, ...]:
        weights = {"cls": self.cls_weight, "patch": self.patch_weight}
        has_center = self.centering == "mean"
        kinds = [kind for kind, weight in weights.items() if weight > 0]
        per_kind = [m for kind in kinds for m in monitors_of(kind, self.prototypes, has_center=has_center)]
        return (*per_kind, *(SHORTCUT if self.cls_weight > 0 else ()), *SPREAD_MONITORS)
