"""Settings of pair samplers: none for a plain view, and the keys shared by all masked views. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated

from pydantic import Field

from sddit.diffusion.masking import MaskShape
from sddit.interfaces import Network, PairSamplerParams, RecipeView, ViewSpec
from sddit.value_schedules import Value, bounded

MaskRatio = Annotated[
    Value,
    bounded(0, 0.99),
    Field(description="Fraction of tokens hidden from the sparse span of the backbone: a value schedule."),
]

PathDrop = Annotated[
    Value,
    bounded(0, 0.99),
    Field(
        description="Probability that a student's sample skips the sparse span entirely, as if all its tokens were "
        "hidden: a value schedule. SPRINT (arXiv:2510.21986): 0.1. The guidance `path_drop` needs it.",
        json_schema_extra={"omit_default": True},
    ),
]


class SingleParams(PairSamplerParams):
    """Settings of the `single` pair sampler: none."""

    def views(self) -> tuple[ViewSpec, ...]:
        return (ViewSpec("student"),)


class MaskedViewParams(PairSamplerParams):
    """Keys of every pair sampler that hides tokens.

    `sddit_dit.pairs.visible_tokens` draws the mask, `sddit_dit.pairs.dropped_paths` the samples without the span.
    """

    mask_ratio: MaskRatio = 0.5
    mask_spread: float = Field(
        0.0, ge=0, lt=1, description="Each step hides a further fraction of tokens, drawn between 0 and this value."
    )
    mask_shape: MaskShape = Field(
        "random",
        description="random: any tokens; block: one connected region; grid: as even as a 4 x 4 pattern allows; "
        "cells: as even over cells of 2 x 2 tokens as the ratio allows, so that at 3/4 one random token of each cell "
        "stays visible (SPRINT, arXiv:2510.21986). No effect if nothing is hidden.",
    )
    path_drop: PathDrop = 0.0

    def masked(self, name: str, network: Network = "student") -> ViewSpec:
        """Return a view with tokens hidden according to these keys. A teacher's samples never drop their path."""
        path_drop = self.path_drop if network == "student" else 0.0
        return ViewSpec(name, network, self.mask_ratio, self.mask_spread, path_drop)

    def idle(self, recipe: RecipeView) -> Iterable[str]:
        return () if any(view.is_masked for view in self.views()) else ("mask_shape",)
