"""The pair sampler of MaskDiT."""

from __future__ import annotations

from sddit import masks
from sddit.interfaces import Batch, Context, Draws, NoiseSchedule, View
from sddit.values import value_at
from sddit_dit.pairs import student_view
from sddit_masking import MaskedParams


class Masked:
    """One student view with hidden tokens (arXiv:2306.09305, section 3.1)."""

    def __init__(self, params: MaskedParams, *, grid: tuple[int, int]) -> None:
        self.params = params
        self.grid = grid

    def __call__(self, batch: Batch, draws: Draws, schedule: NoiseSchedule, ctx: Context) -> dict[str, View]:
        visible = masks.draw(
            draws,
            "mask",
            grid=self.grid,
            ratio=value_at(self.params.mask_ratio, ctx.step, ctx.total_steps),
            shape=self.params.mask_shape,
            device=batch.x0.device,
        )
        return {"student": student_view(batch, draws, schedule, visible=visible)}
