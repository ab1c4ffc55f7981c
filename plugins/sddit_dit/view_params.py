"""Settings of pair samplers: none for a plain view, and the keys that every masked view has. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from sddit.diffusion.masking import MaskShape
from sddit.interfaces import Network, PairSamplerParams, ViewSpec
from sddit.value_schedules import Value, bounded

if TYPE_CHECKING:
    from sddit.recipes.recipe import Recipe

MaskRatio = Annotated[
    Value,
    bounded(0, 0.99),
    Field(description="Share of tokens hidden from the sparse span of the backbone: a value schedule."),
]


class SingleParams(PairSamplerParams):
    """The `single` pair sampler has nothing to set."""

    def views(self) -> tuple[ViewSpec, ...]:
        return (ViewSpec("student"),)


class MaskedViewParams(PairSamplerParams):
    """Keys of every pair sampler that hides tokens. `sddit_dit.pairs.visible_tokens` draws what they say."""

    mask_ratio: MaskRatio = 0.5
    mask_spread: float = Field(
        0.0, ge=0, lt=1, description="Each step hides a further share of tokens, drawn between 0 and this."
    )
    mask_shape: MaskShape = Field(
        "random",
        description="random: any tokens; block: one connected region; grid: as even as a 4 x 4 pattern allows. "
        "No effect where nothing is hidden.",
    )

    def masked(self, name: str, network: Network = "student") -> ViewSpec:
        """A view that hides what these keys say."""
        return ViewSpec(name, network, mask_ratio=self.mask_ratio, mask_spread=self.mask_spread)

    def idle(self, recipe: Recipe) -> Iterable[str]:
        return () if any(view.is_masked for view in self.views()) else ("mask_shape",)
