"""Masked training: MaskDiT's view and reconstruction (arXiv:2306.09305), MDT's backbone and views (arXiv:2303.14389)."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import Field

from sddit import Registry, hookimpl
from sddit.errors import Problem
from sddit.interfaces import (
    Backbone,
    Cost,
    Loss,
    LossParams,
    Needs,
    Optimizer,
    OptimizerParams,
    PairSampler,
    ViewSpec,
    Want,
)
from sddit.recipes.recipe import Recipe
from sddit.value_schedules import Value, bounded
from sddit_dit.view_params import MaskedViewParams, MaskRatio
from sddit_masking.params import MDTParams


class MaskedParams(MaskedViewParams):
    """Settings of the `masked` pair sampler."""

    def views(self) -> tuple[ViewSpec, ...]:
        return (self.masked("student"),)


class MaskedAndFullParams(MaskedViewParams):
    """Settings of the `masked_and_full` pair sampler. MDT v2 has `mask_spread` 0.2."""

    mask_ratio: MaskRatio = 0.3
    shared_noise: bool = Field(False, description="Both views share one noise, as those of other methods do.")
    label_drop: float | None = Field(
        None,
        ge=0,
        le=1,
        description="Chance that the masked view drops its label, whatever the full view does: in MDT that of the data set. "
        "Left out: both views have the same label.",
    )

    def views(self) -> tuple[ViewSpec, ...]:
        return ViewSpec("full"), self.masked("masked")

    def idle(self, recipe: Recipe) -> Iterable[str]:
        unlabelled = recipe.facts.num_classes == 0
        return (*super().idle(recipe), *(("label_drop",) if unlabelled else ()))


Beta = Annotated[float, Field(ge=0, lt=1)]


class AdanParams(OptimizerParams):
    """Settings of the `adan` optimizer. MDTv2 ran it without decay."""

    betas: tuple[Beta, Beta, Beta] = Field(
        (0.98, 0.92, 0.99),
        strict=False,
        description="Decay of the averages of the gradient, of its change from step to step, and of the square of both.",
    )
    eps: float = Field(1e-8, gt=0, description="Added to the root of the last average.")
    weight_decay: float = Field(0.0, ge=0, description="Share of a weight taken away at each step, times lr.")

    @property
    def state_per_parameter(self) -> int:
        return 4


class ReconstructionParams(LossParams):
    """Settings of the `reconstruction` loss."""

    weight: Annotated[Value, bounded(0)] = Field(
        0.1, description="Weight of this term: a value schedule. Constant 0 leaves the term out."
    )
    target: Literal["noised", "clean"] = Field(
        "noised", description="What the hidden tokens are compared with: the network's noisy input, or the clean image."
    )
    normalize: bool = Field(True, description="Shift and scale each patch of the target to mean 0 and variance 1.")

    def needs(self) -> Needs:
        return Needs(student=Want(output=True))

    def cost(self, *_: Any, **__: Any) -> Cost:
        """No heads, and arithmetic on a few numbers per pixel."""
        return Cost()

    def check(self, recipe: Recipe) -> Iterable[Problem]:
        """There must be something hidden to reconstruct, and more than one value in what is normalised."""
        students = [view for view in recipe.views_of(self) if view.network == "student"]
        if not any(view.is_masked for view in students):
            yield Problem(
                "SD-R108",
                "nothing is hidden, so there is nothing to reconstruct",
                where="pair_sampler",
                got=f"{recipe.pair_sampler.component.name!r} with a mask ratio of 0 for the whole run",
                expect="a student view with a mask ratio above 0",
                fix='pair_sampler.name = "masked", or pair_sampler.mask_ratio = 0.5, or drop the loss',
            )
        tokens = math.prod(recipe.backbone.params.grid(recipe.shapes))
        if self.normalize and math.prod(recipe.facts.image) == tokens:
            where = f"loss.{next(label for label, chosen in recipe.losses.items() if chosen.params is self)}.normalize"
            yield Problem(
                "SD-R108",
                "a patch of one value has no variance to normalise",
                where=where,
                got="true with one value a patch",
                expect="larger patches, or false",
                fix=f"{where} = false",
            )


@hookimpl
def register_backbones(registry: Registry[Backbone]) -> None:
    registry.add(
        "mdt",
        "sddit_masking.mdt:MDT",
        params=MDTParams,
        summary="Masked diffusion transformer: relative positions, and a block that interpolates hidden tokens.",
        paper="arXiv:2303.14389",
        formats={"mdtv1": "sddit_masking.formats:MDTv1Format", "mdtv2": "sddit_masking.formats:MDTv2Format"},
        checks={"the published MDT": "sddit_masking.checks:published_mdt"},
    )


@hookimpl
def register_pair_samplers(registry: Registry[PairSampler]) -> None:
    registry.add(
        "masked",
        "sddit_masking.pairs:Masked",
        params=MaskedParams,
        summary="One noisy view of each image with a share of its tokens hidden.",
        paper="arXiv:2306.09305",
    )
    registry.add(
        "masked_and_full",
        "sddit_masking.pairs:MaskedAndFull",
        params=MaskedAndFullParams,
        summary="Two noisy views of each image at one level: every token seen, and a share of them hidden.",
        paper="arXiv:2303.14389",
    )


@hookimpl
def register_losses(registry: Registry[Loss]) -> None:
    registry.add(
        "reconstruction",
        "sddit_masking.loss:Reconstruction",
        params=ReconstructionParams,
        summary="Mean squared error of the hidden patches, from the visible ones.",
        paper="arXiv:2306.09305",
        checks={
            "what hidden patches are compared with": "sddit_masking.checks:target",
            "the published MaskDiT": "sddit_masking.checks:published_reconstruction",
        },
    )


@hookimpl
def register_optimizers(registry: Registry[Optimizer]) -> None:
    registry.add(
        "adan",
        "sddit_masking.optimizer:Adan",
        params=AdanParams,
        summary="Adam with Nesterov's look-ahead by the change of the gradient: MDTv2's optimizer.",
        paper="arXiv:2208.06677",
        requires=("pytorch-optimizer",),
    )
