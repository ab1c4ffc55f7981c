"""Settings of the `pf_ode` pair sampler and of the `discrimination` loss. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, model_validator

from sddit.errors import Problem
from sddit.interfaces import (
    BackboneParams,
    Cost,
    LossParams,
    Monitor,
    Needs,
    Shapes,
    Tap,
    ViewSpec,
    Want,
)
from sddit.value_schedules import Moment, Value, bounded
from sddit_dit.view_params import MaskedViewParams, MaskRatio

if TYPE_CHECKING:
    from sddit.recipes.recipe import Recipe

USES = {"teacher_sigma": ("fixed", "below", "offset"), "teacher_offset": ("offset",)}
"""The modes of `teacher_noise` in which a key has an effect."""


class PfOdeParams(MaskedViewParams):
    """Settings of the `pf_ode` pair sampler. Levels are in variance-exploding coordinates, sigma / alpha."""

    mask_ratio: MaskRatio = 0.2
    teacher_noise: Literal["fixed", "same", "below", "offset"] = Field(
        "fixed",
        description="The teacher's level. fixed: teacher_sigma; same: the student's; below: uniform between teacher_sigma "
        "and the student's; offset: the student's less a uniform part of teacher_offset.",
    )
    teacher_sigma: float = Field(
        0.002, gt=0, description="The teacher's level where it is fixed, and its lowest one with below and offset."
    )
    teacher_offset: float = Field(
        0.2,
        gt=0,
        le=1,
        description="Only with offset: the largest fall of tau = sigma / (1 + sigma), the time of the linear path through "
        "the same noisy image (SRA, arXiv:2505.02831).",
    )
    shared_noise: bool = Field(
        True, description="Both views share one noise, so that they lie on one ray from the image."
    )
    teacher_label: Literal["same", "null"] = Field(
        "same", description="The teacher sees the student's label, or the null label."
    )
    teacher_mask: Literal["none", "visible"] = Field(
        "none", description="The teacher sees every token, or the student's visible ones. No effect at ratio 0."
    )

    @model_validator(mode="after")
    def _all_keys_count(self) -> PfOdeParams:
        for key, modes in USES.items():
            if self.teacher_noise not in modes and getattr(self, key) != type(self).model_fields[key].default:
                raise ValueError(f"{key} has no effect with teacher_noise = {self.teacher_noise!r}: leave it out")
        return self

    def views(self) -> tuple[ViewSpec, ...]:
        sees_all = self.teacher_mask == "none"
        teacher = ViewSpec("teacher", "teacher") if sees_all else self.masked("teacher", "teacher")
        return self.masked("student"), teacher

    def idle(self, recipe: Recipe) -> Iterable[str]:
        return () if any(view.is_masked for view in self.views()) else ("mask_shape", "teacher_mask")

    def warnings(self, recipe: Recipe) -> Iterable[str]:
        """Of a teacher that sees the student's own picture: then there is nothing to infer, whatever the loss falls to."""
        student, teacher = self.views()
        read = any(chosen.params.needs().teacher for chosen in recipe.terms.values())
        if read and self.teacher_noise == "same" and self.shared_noise and student.is_masked == teacher.is_masked:
            tokens = "the student's visible tokens" if student.is_masked else "no mask"
            yield (
                'student and teacher see the same picture (teacher_noise = "same", shared_noise = true, '
                f"{tokens}): agreement between them is trivial and teaches nothing"
            )

    def check(self, recipe: Recipe) -> Iterable[Problem]:
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
                "the data has no labels, so the teacher's is the null label anyway",
                where="pair_sampler.teacher_label",
                got="null",
                expect="same",
                fix="leave pair_sampler.teacher_label out",
            )
        elif self.teacher_label == "null" and recipe.dataset.params.label_drop == 0:
            yield Problem(
                "SD-R108",
                "the teacher gets the null label, and no training image ever has it",
                where="pair_sampler.teacher_label",
                got="null with dataset.label_drop = 0",
                expect="a null label that is trained",
                fix='dataset.label_drop = 0.1, or pair_sampler.teacher_label = "same"',
            )


class DiscriminationParams(LossParams):
    """Settings of the `discrimination` loss. Defaults are iBOT's (arXiv:2111.07832), spread over SD-DiT's 480 epochs."""

    weight: Annotated[Value, bounded(0)] = Field(
        0.1,
        description="lambda_D, unknown for SD-DiT: a value schedule. Constant 0 leaves the term and its teacher out.",
    )
    tap: Tap = Field("encoder", description="Where the student's tokens are read.")
    teacher_tap: Tap | None = Field(
        None, description="Where the teacher's tokens are read; left out: as the student's."
    )
    cls_weight: float = Field(1.0, ge=0, description="w_cls, weight of the class term within this loss.")
    patch_weight: float = Field(1.0, ge=0, description="w_patch, weight of the patch term within this loss.")
    cls_source: Literal["token", "mean"] = Field(
        "token",
        description="What the class term compares: the backbone's class token, or the mean of the patch tokens that a "
        "network sees. No effect at cls_weight 0.",
    )
    prototypes: int = Field(8192, ge=2, le=10**6, description="K, outputs of the head.")
    hidden: int = Field(2048, ge=1, le=65_536, description="Width of the head's hidden layers.")
    bottleneck: int = Field(256, ge=1, le=65_536, description="Width of the normalised vector before the prototypes.")
    layers: int = Field(3, ge=2, le=16, description="Linear layers before the prototypes.")
    shared_head: bool = Field(
        True, description="Class and patch tokens share their prototypes, not only the layers before."
    )
    norm_last_layer: bool = Field(False, description="Freeze the gain of each prototype at 1.")
    student_temp: float = Field(0.1, gt=0, description="tau_s, temperature of the student.")
    teacher_temp: Annotated[Value, bounded(1e-4)] = Field(
        default={"start": 0.04, "end": 0.07, "until": 0.0625},
        validate_default=True,
        description="tau_t, temperature of the teacher: a value schedule. 0.04 to 0.07 over 30 of 480 epochs by default.",
    )
    centering: Literal["mean", "sinkhorn", "none"] = Field(
        "mean",
        description="What keeps one prototype from taking all. mean: a running mean is subtracted from the teacher's logits "
        "(DINO); sinkhorn: its assignments are balanced over the batch (SwAV, arXiv:2006.09882); none: nothing.",
    )
    center_momentum: float = Field(
        0.9, ge=0, lt=1, description="Share of the centre kept at each step. Only with centering mean."
    )
    sinkhorn_iterations: int = Field(3, ge=1, le=100, description="Rounds of balancing. Only with centering sinkhorn.")
    freeze_last: Moment = Field(
        0.002,
        description="Until when the prototypes do not learn: steps, or a share of the run. 1 of 480 epochs by default.",
    )

    @model_validator(mode="after")
    def _all_keys_count(self) -> DiscriminationParams:
        if self.cls_weight == self.patch_weight == 0:
            raise ValueError("cls_weight and patch_weight are both 0: nothing is left; set weight = 0 instead")
        if not self.shared_head and 0 in (self.cls_weight, self.patch_weight):
            raise ValueError(
                "shared_head = false has no effect with only one of the class and patch terms: leave it out"
            )
        return self

    @property
    def taps(self) -> tuple[Tap, Tap]:
        """Where the student's and the teacher's tokens are read."""
        return self.tap, self.tap if self.teacher_tap is None else self.teacher_tap

    @property
    def couples_samples(self) -> bool:
        return self.centering == "sinkhorn"

    def needs(self) -> Needs:
        cls = self.cls_weight > 0 and self.cls_source == "token"
        student, teacher = self.taps
        return Needs(student=Want(taps=(student,), cls=cls), teacher=Want(taps=(teacher,), cls=cls))

    def idle(self, recipe: Recipe) -> Iterable[str]:
        if self.centering != "mean":
            yield "center_momentum"
        if self.centering != "sinkhorn":
            yield "sinkhorn_iterations"
        if self.cls_weight == 0:
            yield "cls_source"

    def check(self, recipe: Recipe) -> Iterable[Problem]:
        try:
            student, teacher = (recipe.backbone.params.width(tap) for tap in self.taps)
        except ValueError:  # a tap that does not exist is the core's to report
            return
        if student != teacher:
            where = f"loss.{next(label for label, chosen in recipe.losses.items() if chosen.params is self)}"
            yield Problem(
                "SD-R108",
                "one head cannot read tokens of two widths",
                where=f"{where}.teacher_tap",
                got=f"{teacher} at {self.taps[1]!r}, {student} at {self.taps[0]!r}",
                expect="taps of one width",
                fix=f"leave {where}.teacher_tap out, or choose a block of the same span",
            )

    def cost(self, backbone: BackboneParams, shapes: Shapes, view: ViewSpec, num_kept: int) -> Cost:
        """The head on one view: its parameters count once, on the student's side; the teacher keeps no activations."""
        width = backbone.width(self.tap)
        inner = (self.layers - 2) * self.hidden
        mlp = (width + inner + self.bottleneck) * self.hidden
        last = self.bottleneck * self.prototypes
        tokens = (self.cls_weight > 0) + num_kept * (self.patch_weight > 0)
        flops = 2.0 * tokens * (mlp + last)
        if view.network == "teacher":
            return Cost(flops=flops)
        biases = (self.layers - 1) * self.hidden + self.bottleneck
        gains = 0 if self.norm_last_layer else self.prototypes
        copies = 1 if self.shared_head else 2
        kept_numbers = width + 2 * (self.layers - 1) * self.hidden + 2 * self.bottleneck + 2 * self.prototypes
        return Cost(mlp + biases + copies * (last + gains), flops, float(tokens * kept_numbers))

    def monitors(self) -> tuple[Monitor, ...]:
        """The signs of collapse and of the label shortcut. ln K is the entropy of a uniform assignment."""
        kinds = {"cls": self.cls_weight, "patch": self.patch_weight}
        per_kind = [m for kind, weight in kinds.items() if weight > 0 for m in self._monitors_of(kind)]
        shortcut = (
            Monitor("kl_within", "KL of class assignments within a class", "well above 0, below kl_between", low=0.01),
            Monitor("kl_between", "KL of class assignments between classes", "above 0", low=0.01),
        )
        features = (
            Monitor("feature_std", "Deviation of the student's tokens per dimension", "steady", low=1e-3),
            Monitor("effective_rank", "Effective rank of the student's tokens", "steady", low=2.0),
        )
        return (*per_kind, *(shortcut if self.cls_weight > 0 else ()), *features)

    def _monitors_of(self, kind: str) -> Iterable[Monitor]:
        most = math.log(self.prototypes)
        term = {"cls": "class term", "patch": "patch term"}[kind]
        yield Monitor(
            f"{kind}_loss",
            f"Cross-entropy, {term}",
            "a plateau at ln K early on, then a fall; a later slow rise of the patch term is normal",
            reference=most,
        )
        yield Monitor(
            f"{kind}_entropy",
            f"Entropy of the teacher's assignments, {term}",
            "falling from ln K (uniform: nothing is told apart) to sharp; near 0 is no collapse as long as the mean assignment stays wide",
            high=0.99 * most,
            reference=most,
        )
        yield Monitor(
            f"{kind}_kl_uniform",
            f"KL of the mean assignment to uniform, {term}",
            "steady or slowly falling; ln K means that one prototype takes all",
            high=0.9 * most,
            reference=most,
        )
        handful = 4 / self.prototypes
        for network in ("teacher", "student"):
            yield Monitor(
                f"{kind}_used_{network}",
                f"Share of prototypes in use by the {network} in a batch, {term}",
                "a growing share",
                low=handful,
            )
        yield Monitor(f"{kind}_logit_std", f"Deviation of the teacher's logits, {term}", "bounded, no drift", low=1e-4)
        if self.centering == "mean":
            yield Monitor(f"{kind}_center_norm", f"Norm of the centre, {term}", "bounded, no drift")
