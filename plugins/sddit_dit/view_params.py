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


class SingleParams(PairSamplerParams):
    """Settings of the `single` pair sampler: none."""

    def views(self) -> tuple[ViewSpec, ...]:
        return (ViewSpec("student"),)


class MaskedViewParams(PairSamplerParams):
    """Keys of every pair sampler that hides tokens. `sddit_dit.pairs.visible_tokens` draws the mask."""

    mask_ratio: MaskRatio = 0.5
    mask_spread: float = Field(
        0.0, ge=0, lt=1, description="Each step hides a further fraction of tokens, drawn between 0 and this value."
    )
    mask_shape: MaskShape = Field(
        "random",
        description="random: any tokens; block: one connected region; grid: as even as a 4 x 4 pattern allows. "
        "No effect if nothing is hidden.",
    )

    def masked(self, name: str, network: Network = "student") -> ViewSpec:
        """Return a view with tokens hidden according to these keys."""
        return ViewSpec(name, network, mask_ratio=self.mask_ratio, mask_spread=self.mask_spread)

    def idle(self, recipe: RecipeView) -> Iterable[str]:
        return () if any(view.is_masked for view in self.views()) else ("mask_shape",)
