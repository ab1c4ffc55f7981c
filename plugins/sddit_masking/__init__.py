"""MaskDiT (arXiv:2306.09305): a masked student view, and the reconstruction of what it hides."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Annotated, Literal

from pydantic import Field

from sddit import Registry, hookimpl
from sddit.errors import Problem
from sddit.interfaces import Loss, LossParams, Needs, PairSampler, PairSamplerParams, ViewSpec, Want
from sddit.masks import MaskShape
from sddit.recipes.recipe import Recipe
from sddit.values import Value, bounded, is_zero


class MaskedParams(PairSamplerParams):
    """Settings of the `masked` pair sampler."""

    mask_ratio: Annotated[Value, bounded(0, 0.99)] = Field(
        0.5, description="Share of tokens hidden from the sparse span of the backbone: a value schedule."
    )
    mask_shape: MaskShape = Field(
        "random",
        description="random: any tokens; block: one connected region; grid: as even as a 4 x 4 pattern allows. "
        "No effect at ratio 0.",
    )

    def views(self) -> tuple[ViewSpec, ...]:
        return (ViewSpec("student", mask_ratio=self.mask_ratio),)

    def idle(self, recipe: Recipe) -> Iterable[str]:
        return ("mask_shape",) if is_zero(self.mask_ratio) else ()


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

    def check(self, recipe: Recipe) -> Iterable[Problem]:
        """There must be something hidden to reconstruct, and more than one value in what is normalised."""
        students = [view for view in recipe.views_of(self) if view.network == "student"]
        if all(is_zero(view.mask_ratio) for view in students):
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
def register_pair_samplers(registry: Registry[PairSampler]) -> None:
    registry.add(
        "masked",
        "sddit_masking.pairs:Masked",
        params=MaskedParams,
        summary="One noisy view of each image with a share of its tokens hidden.",
        paper="arXiv:2306.09305",
    )


@hookimpl
def register_losses(registry: Registry[Loss]) -> None:
    registry.add(
        "reconstruction",
        "sddit_masking.loss:Reconstruction",
        params=ReconstructionParams,
        summary="Mean squared error of the hidden patches, from the visible ones.",
        paper="arXiv:2306.09305",
    )
