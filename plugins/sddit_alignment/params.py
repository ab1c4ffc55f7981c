"""Settings of the `align` loss. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Annotated, Literal

from pydantic import Field, model_validator

from sddit.errors import Problem, one_of
from sddit.evaluation.token_spread import SPREAD_MONITORS
from sddit.interfaces import (
    BackboneParams,
    BackboneView,
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
from sddit.value_schedules import Value, bounded

CONVOLUTION = 9
"""Weights of a 3x3 convolution for each pair of channels."""

MONITORS = (
    Monitor(
        "similarity",
        "Mean cosine similarity of tokens and targets",
        "rising, then a plateau below 1; 1 means that the targets are trivial",
        high=0.9999,
    ),
    Monitor("target_std", "Standard deviation of the targets per dimension", "steady", low=1e-3),
)


class AlignParams(LossParams):
    """Settings of the `align` loss: which tokens are compared with which targets, and how.

    Defaults are SRA's (arXiv:2505.02831): a teacher's deeper block, the cosine, and an MLP.
    """

    weight: Annotated[Value, bounded(0)] = Field(
        0.5,
        description="Weight of this loss: a value schedule. Published: 0.5 for SRA and REPA, 0.2 for LayerSync, 1.0 "
        "for SRA 2.",
    )
    source: Literal["teacher", "self", "clean", "external"] = Field(
        "teacher",
        description="Origin of the targets. teacher: tokens of the teacher, an EMA of the student (SRA), or with "
        "[snapshot] the network of another run (Self-Transcendence, arXiv:2601.07773); self: tokens of a deeper block "
        "in the same pass, without gradient (LayerSync, arXiv:2510.12581); clean: patches of the clean image or latent "
        "(SRA 2, arXiv:2601.17830); external: features that the data set has of each image (REPA, arXiv:2410.06940).",
    )
    features: str = Field("features", description="Name of the features of the data set. Only with source external.")
    feature_width: int | None = Field(
        None, ge=1, le=65_536, description="Channels of those features; needed with source external, and only there."
    )
    tap: Tap = Field(0.3, description="Tap of the student's tokens. Published: 0.29 of the depth for most sizes.")
    target_tap: Tap = Field(
        0.7,
        description="Tap of the targets. Published: 0.71 of the depth for SRA, 0.57 for LayerSync, which warns of the "
        "last fifth. Only with sources teacher and self.",
    )
    metric: Literal["cosine", "smooth_l1", "mse"] = Field(
        "cosine",
        description="Distance of tokens and targets. cosine: 1 - cosine similarity; smooth_l1: squared below `beta`, "
        "absolute above it; mse: squared. Published: cosine, but smooth_l1 in the papers of SRA and SRA 2.",
    )
    beta: float = Field(
        0.05, ge=0, description="Error below which smooth_l1 is squared; 0: the absolute error. Published for SRA."
    )
    axis: Literal["channel", "token"] = Field(
        "channel",
        description="Direction of the cosine: over the channels of each token, or over the tokens of each channel. "
        "SRA's code takes the tokens, LayerSync and REPA the channels; SRA's paper has no cosine.",
    )
    head: Literal["none", "mlp", "conv"] = Field(
        "mlp",
        description="Trained map of the student's tokens before the comparison. mlp: Linear layers with SiLU; conv: a "
        "3x3 convolution on the grid of tokens (iREPA, arXiv:2512.10794).",
    )
    head_layers: int = Field(
        2, ge=2, le=16, description="Linear layers of the MLP. Published: 2 for SRA, 3 for REPA, 5 for SRA 2."
    )
    head_width: int | None = Field(
        None,
        ge=1,
        le=65_536,
        description="Width of the MLP's hidden layers; 2048 for REPA. Default, as in SRA's code: the widths of tokens "
        "and targets added.",
    )
    target_norm: Literal["none", "sample", "data"] = Field(
        "none",
        description="Normalization of the targets. sample: each channel to mean 0 and standard deviation 1 over the "
        "tokens of its sample, as iREPA; data: each channel of the clean image by mean and standard deviation of the "
        "training data, our choice for SRA 2, whose weight otherwise depends on the autoencoder.",
    )
    guidance: float = Field(
        1.0,
        ge=0,
        le=1000,
        description="Scale s of guided targets, f_null + s (f - f_null), of the teacher's tokens f with the label and "
        "f_null with the null label, which `offset_pair` makes with null_view; published: 30. 1: no guidance.",
    )
    permute: Literal["none", "tokens", "channels"] = Field(
        "none",
        description="Control arm: compare with targets in a fixed random order of tokens or of channels, which keeps "
        "their norms and destroys the alignment.",
    )

    @model_validator(mode="after")
    def _refuse_contradictions(self) -> AlignParams:
        if self.target_norm == "data" and self.source != "clean":
            raise ValueError("target_norm: 'data' is for source 'clean', whose statistics the data set states")
        if (self.source == "external") != (self.feature_width is not None):
            raise ValueError("feature_width: is needed with source 'external', and only there")
        if self.source != "teacher" and self.guidance != 1:
            raise ValueError("guidance: only targets of source 'teacher' are guided")
        if self.head == "none" and self.head_width is not None:
            raise ValueError("head_width has no effect with head = 'none': remove it")
        return self

    def needs(self) -> Needs:
        if self.source in ("clean", "external"):
            return Needs(student=Want(taps=(self.tap,)))
        if self.source == "self":
            return Needs(student=Want(taps=(self.tap,)) | Want(taps=(self.target_tap,)))
        return Needs(student=Want(taps=(self.tap,)), teacher=Want(taps=(self.target_tap,)))

    def target_width(self, backbone: BackboneView, shapes: Shapes) -> int:
        """Return the number of channels of a target."""
        if self.source == "clean":
            return math.prod(shapes.image) // math.prod(backbone.grid(shapes))
        if self.feature_width is not None:
            return self.feature_width
        return backbone.width(self.target_tap)

    def idle(self, recipe: RecipeView) -> Iterable[str]:
        if self.source in ("clean", "external"):
            yield "target_tap"
        if self.source != "external":
            yield "features"
        if self.metric != "smooth_l1":
            yield "beta"
        if self.metric != "cosine":
            yield "axis"
        if self.head != "mlp":
            yield from ("head_layers", "head_width")

    def check(self, recipe: RecipeView) -> Iterable[Problem]:
        yield from self._width_problems(recipe)
        if self.source == "external":
            yield from self._feature_problems(recipe)
        teachers = [view.name for view in recipe.views_of(self) if view.network == "teacher"]
        if self.guidance != 1 and len(teachers) != 2:
            key = f"{recipe.key_of(self)}.guidance"
            yield Problem(
                "SD-R108",
                "guided targets need a teacher view with the label and one with the null label",
                where=key,
                got=f"the teacher views {', '.join(teachers) or 'none'}",
                expect="two",
                fix=f'pair_sampler.name = "offset_pair" and pair_sampler.null_view = true, or {key} = 1',
            )

    def _width_problems(self, recipe: RecipeView) -> Iterator[Problem]:
        """Check that without a head, tokens and targets have one width."""
        if self.head != "none":
            return
        backbone = recipe.backbone.params
        try:
            student, target = backbone.width(self.tap), self.target_width(backbone, recipe.shapes)
        except ValueError:  # the core reports a tap that does not exist
            return
        if student != target:
            key = recipe.key_of(self)
            yield Problem(
                "SD-R108",
                "tokens cannot be compared with targets of another width without a head",
                where=f"{key}.head",
                got=f"none, for tokens of width {student} and targets of width {target}",
                expect="mlp or conv",
                fix=f'{key}.head = "mlp"',
            )

    def _feature_problems(self, recipe: RecipeView) -> Iterator[Problem]:
        """Check that the data set has the features, of that width."""
        key, known = recipe.key_of(self), recipe.dataset.params.targets()
        if self.features not in known:
            what = f"the data set has no features {self.features!r}"
            yield Problem("SD-R108", what, f"{key}.features", self.features, one_of(self.features, known) or "none")
        elif known[self.features][0] != self.feature_width:
            what, width = "the features of the data set have another width", known[self.features][0]
            fix = f"{key}.feature_width = {width}"
            yield Problem("SD-R108", what, f"{key}.feature_width", str(self.feature_width), str(width), fix)

    def warnings(self, recipe: RecipeView) -> Iterable[str]:
        """Warn if tokens are compared with themselves."""
        if self.source == "self" and self.tap == self.target_tap:
            yield f"tap and target_tap are both {self.tap!r}: tokens that are compared with themselves teach nothing"

    def cost(self, backbone: BackboneParams, shapes: Shapes, view: ViewSpec, num_kept: int) -> Cost:
        """Return the cost of the head on a student view; the teacher's tokens pass no head."""
        if view.network == "teacher" or self.head == "none":
            return Cost()
        width, target = backbone.width(self.tap), self.target_width(backbone, shapes)
        if self.head == "conv":
            weights, tokens = CONVOLUTION * width * target, math.prod(backbone.grid(shapes))
            return Cost(weights + target, 2.0 * tokens * weights, float(tokens * (width + 2 * target)))
        hidden = width + target if self.head_width is None else self.head_width
        weights = hidden * (width + target + (self.head_layers - 2) * hidden)
        parameters = weights + (self.head_layers - 1) * hidden + target
        activations = width + 2 * (self.head_layers - 1) * hidden + 2 * target
        return Cost(parameters, 2.0 * num_kept * weights, float(num_kept * activations))

    def monitors(self) -> tuple[Monitor, ...]:
        return (*MONITORS, *SPREAD_MONITORS)
