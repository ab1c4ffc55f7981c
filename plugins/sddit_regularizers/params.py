"""Settings of the losses that compare samples or blocks, without a target. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from sddit.errors import Problem
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
from sddit.value_schedules import Value, bounded, extremes
from sddit_dit.cost import linear
from sddit_dit.params import TransformerParams

FEW_IMAGES = 8  # a batch of this size or less has almost no signal for the dispersive loss


def is_teacher(view: ViewSpec) -> bool:
    """Return whether a view costs these losses nothing: they read only the student's."""
    return view.network == "teacher"


class DispersiveParams(LossParams):
    """Settings of the `dispersive` loss. Its value depends on the batch: state the weight with the batch size."""

    weight: Annotated[Value, bounded(0)] = Field(
        0.5,
        description="lambda: a value schedule. Constant 0 disables the loss. Default as reported of the paper.",
    )
    variant: Literal["l2", "cosine", "hinge", "covariance"] = Field(
        "l2",
        description="How images are compared. l2 and cosine: log of the mean of exp(-distance / temperature); hinge: "
        "squared part of 1 - cosine that is missing to the margin; covariance: squared covariances between channels. "
        "Published default: l2.",
    )
    tap: Tap = Field(0.25, description="Block whose tokens are compared; a quarter of the depth, as published.")
    temperature: float = Field(
        0.5, gt=0, description="tau of l2 and cosine. Default as reported of the paper; published code uses 1."
    )
    margin: float = Field(
        1.0, gt=0, le=2, description="Only with hinge: 1 - cosine that is enough; 1 is orthogonal. Our choice."
    )

    @property
    def couples_samples(self) -> bool:
        return True

    def needs(self) -> Needs:
        return Needs(student=Want(taps=(self.tap,)))

    def idle(self, recipe: RecipeView) -> Iterable[str]:
        if self.variant in ("hinge", "covariance"):
            yield "temperature"
        if self.variant != "hinge":
            yield "margin"

    def check(self, recipe: RecipeView) -> Iterable[Problem]:
        """Check that images are compared at the same positions."""
        backbone = recipe.backbone.params
        masked = [view.name for view in recipe.views_of(self) if not is_teacher(view) and view.is_masked]
        if not masked or not isinstance(backbone, TransformerParams):
            return
        try:
            hidden = backbone.block_of(self.tap) <= backbone.encoder_depth
        except ValueError:  # the core reports a tap that does not exist
            return
        if hidden:
            where = f"{recipe.key_of(self)}.tap"
            yield Problem(
                "SD-R108",
                "images that hide different tokens cannot be compared position by position",
                where=where,
                got=f"{self.tap!r}, in the sparse span of {', '.join(masked)}",
                expect="a tap at which every image has all tokens, or a view that hides none",
                fix=f'{where} = "decoder", or pair_sampler.mask_ratio = 0.0',
            )

    def warnings(self, recipe: RecipeView) -> Iterable[str]:
        if recipe.train.batch <= FEW_IMAGES:
            key = recipe.key_of(self)
            yield f"train.batch = {recipe.train.batch}: {key} compares the images of a batch, and has few to compare"

    def cost(self, backbone: BackboneParams, shapes: Shapes, view: ViewSpec, num_kept: int) -> Cost:
        """Return the numbers that are kept: the centered features, and those of all ranks."""
        return Cost() if is_teacher(view) else Cost(activations=2.0 * num_kept * backbone.width(self.tap))

    def pair_cost(self, backbone: BackboneParams, shapes: Shapes, view: ViewSpec, num_kept: int) -> Cost:
        """Return the cost of one scalar product; its distance and the function of it are kept."""
        if is_teacher(view):
            return Cost()
        return Cost(flops=2.0 * num_kept * backbone.width(self.tap), activations=2)

    def monitors(self) -> tuple[Monitor, ...]:
        of = "per dimension" if self.variant == "l2" else "of features of length 1"
        return (
            Monitor(
                "distance_within",
                f"Squared distance {of}, images of one class",
                "above 0 and below that between classes: the loss also separates images of one class",
                low=1e-4,
            ),
            Monitor(
                "distance_between",
                f"Squared distance {of}, images of different classes",
                "growing, then steady; without limit means that features only grow longer",
                low=1e-4,
                high=4.0 if of.startswith("of") else 1e3,
            ),
        )


class RepulsorParams(LossParams):
    """Settings of the `repulsor` loss. The paper's own settings are not known to us: all defaults are our choice."""

    weight: Annotated[Value, bounded(0)] = Field(
        0.25, description="Weight of this loss: a value schedule. Constant 0 disables it. Our choice."
    )
    tap: Tap = Field(0.25, description="Block whose mean token is projected. Our choice: that of `dispersive`.")
    projection: Literal["trained", "fixed"] = Field(
        "trained",
        description="Head of the mean token: a trained MLP, as published, or a fixed random matrix, for learning rates "
        "at which a trained head changes faster than the queue is replaced.",
    )
    queue: int = Field(
        8192, ge=1, le=10**7, description="Number of past projections. Our choice; published: a large queue."
    )
    dimension: int = Field(
        128, ge=2, le=65_536, description="Width of the projections. Our choice; published: a low dimension."
    )
    temperature: float = Field(0.5, gt=0, description="tau, divisor of the cosines. Our choice: that of `dispersive`.")

    def needs(self) -> Needs:
        return Needs(student=Want(taps=(self.tap,)))

    def cost(self, backbone: BackboneParams, shapes: Shapes, view: ViewSpec, num_kept: int) -> Cost:
        """Return the cost of the head on the mean token, and of its products with the queue."""
        if is_teacher(view):
            return Cost()
        width = backbone.width(self.tap)
        kept = width + 2 * self.dimension + self.queue  # the SiLU's input, both projections, the exponents
        products = Cost(flops=2.0 * self.queue * self.dimension, activations=kept)
        if self.projection == "fixed":
            return products + Cost(flops=2.0 * width * self.dimension, frozen=width * self.dimension)
        return products + linear(1, width, width) + linear(1, width, self.dimension)

    def monitors(self) -> tuple[Monitor, ...]:
        return (
            Monitor(
                "cosine_square",
                "Mean squared cosine to the queue",
                "falling towards 1 / dimension; 1 means that all projections are on one line",
                high=0.9,
                reference=1 / self.dimension,
            ),
            Monitor(
                "drift",
                "Length of the mean direction of a batch, seen from the queue",
                "near 0; 1 means that features change faster than the queue is replaced",
                high=0.9,
            ),
            Monitor(
                "cosine_max",
                "Cosine to the nearest projection in the queue",
                "below 1; it may grow with the length of the queue",
                high=0.9999,
            ),
        )


class ContrastiveParams(LossParams):
    """Settings of the `contrastive` loss, which is the second term next to a denoising loss."""

    weight: Annotated[Value, bounded(0)] = Field(
        0.05, description="lambda: a value schedule. Constant 0 disables the loss. Published default."
    )
    partner: Literal["any", "other_class"] = Field(
        "any",
        description="Image whose target is the negative: any other image of the batch, or one of another class, where "
        "images with a dropped label have none. Published: any, the neighbour in the batch; ours is drawn.",
    )
    space: Literal["native", "velocity"] = Field(
        "native",
        description="What is compared: the network's own output, or eps - x0, the velocity of the linear path "
        "through the same noisy image. In the flow schedule both are the published velocity; for the others, native "
        "is our choice.",
    )
    weighting: Literal["uniform", "linear"] = Field(
        "uniform",
        description="Weight over noise levels: equal, or the time of the linear path, sigma / (alpha + sigma). "
        "Published: uniform.",
    )

    @property
    def couples_samples(self) -> bool:
        return True

    def needs(self) -> Needs:
        return Needs(student=Want(output=True))

    def check(self, recipe: RecipeView) -> Iterable[Problem]:
        key = recipe.key_of(self)
        if self.partner == "other_class" and recipe.facts.num_classes < 2:
            yield Problem(
                "SD-R108",
                "there is no image of another class",
                where=f"{key}.partner",
                got=f"other_class with {recipe.facts.num_classes} classes",
                expect="any",
                fix=f'{key}.partner = "any"',
            )
        if recipe.train.batch < 2:
            yield Problem(
                "SD-R108",
                "a batch of one image has no partner for it",
                where="train.batch",
                got=str(recipe.train.batch),
                expect="at least 2",
                fix=f"train.batch = 2, or {key} = false",
            )

    def warnings(self, recipe: RecipeView) -> Iterable[str]:
        """Warn of a weight at which the sum with a denoising loss of weight 1 has no minimum."""
        if extremes(self.weight)[1] >= 1:
            key = recipe.key_of(self)
            yield f"{key}.weight of 1 or more: with a denoising loss of weight 1, the objective has no minimum"

    def cost(self, *_: Any, **__: Any) -> Cost:
        """Return zero: no heads, and negligible arithmetic per pixel."""
        return Cost()

    def monitors(self) -> tuple[Monitor, ...]:
        what = {"native": "the network's own output", "velocity": "the velocity eps - x0"}[self.space]
        return (
            Monitor(
                "second_term",
                f"Squared distance of {what} to the partner's target",
                "steady, near 2 for targets of unit variance; growth without limit is a divergence",
                high=20.0,
            ),
            Monitor("paired", "Fraction of images with a partner", "the fraction of labelled images, or 1", low=0.1),
        )


class DiversityParams(LossParams):
    """Settings of the `diversity` loss."""

    taps: tuple[Tap, ...] = Field(
        (0.25, 0.5, 0.75, 1.0),
        strict=False,
        min_length=2,
        max_length=1000,
        description="Blocks that are made to differ, all of one width. Our choice: four, evenly spaced.",
    )
    gate_low: float = Field(0.1, description="Similarity below which the loss is off. Published.")
    gate_high: float = Field(0.5, gt=0, description="Similarity above which it has its whole weight. Published.")

    @model_validator(mode="after")
    def _rises(self) -> Self:
        if self.gate_low >= self.gate_high:
            raise ValueError("gate_low must be below gate_high")
        return self

    def needs(self) -> Needs:
        return Needs(student=Want(taps=self.taps))

    def check(self, recipe: RecipeView) -> Iterable[Problem]:
        """Check that the blocks differ, and have tokens of one width."""
        backbone, where = recipe.backbone.params, f"{recipe.key_of(self)}.taps"
        try:
            widths = [backbone.width(tap) for tap in self.taps]
            blocks: Sequence[Tap] = self.taps
            if isinstance(backbone, TransformerParams):
                blocks = [backbone.block_of(tap) for tap in self.taps]
        except ValueError:  # the core reports a tap that does not exist
            return
        if len(set(widths)) > 1:
            yield Problem(
                "SD-R108",
                "tokens of different widths cannot be compared",
                where=where,
                got=f"widths {', '.join(map(str, widths))}",
                expect="taps of one width",
                fix=f'{where} = [1, "encoder"], or give the decoder the width of the encoder',
            )
        if len(set(blocks)) < len(blocks):
            yield Problem(
                "SD-R108",
                "a block is compared with itself",
                where=where,
                got=f"blocks {', '.join(map(str, blocks))}",
                expect="taps of different blocks",
                fix=f"name fewer taps, or a depth of at least {len(self.taps)}",
            )

    def cost(self, backbone: BackboneParams, shapes: Shapes, view: ViewSpec, num_kept: int) -> Cost:
        """Return the cost of the cosines between mean tokens; tokens, and two ways to normalize them, are kept."""
        if is_teacher(view):
            return Cost()
        count, width = len(self.taps), backbone.width(self.taps[0])
        return Cost(flops=2.0 * count**2 * width, activations=4.0 * count * num_kept * width)

    def monitors(self) -> tuple[Monitor, ...]:
        return (
            Monitor(
                "similarity",
                "Similarity of the blocks, before the gate",
                "falling from 2/3, for equal blocks, towards the lower end of the gate",
                low=-1.0,
                reference=2 / 3,
            ),
            Monitor("gate", "Gate of the loss", "1 at first, then smaller; 0 while blocks differ enough"),
            Monitor("mean_cosine", "Mean |cosine| of the mean tokens of two blocks", "falling", reference=1.0),
            Monitor("token_cosine", "Mean cosine of the tokens of two blocks", "falling", reference=1.0),
            Monitor(
                "variance",
                "Variance over blocks of the mean normalized token, per channel",
                "rising; at most 1",
            ),
        )
