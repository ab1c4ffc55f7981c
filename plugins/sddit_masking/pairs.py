"""The pair samplers of MaskDiT and of MDT."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from sddit.interfaces import Batch, Context, Draws, NoiseSchedule, View
from sddit_dit.pairs import student_view, visible_tokens
from sddit_masking.params import MaskedAndFullParams, MaskedParams

OWN = "masking/masked_and_full"  # prefix of that component's own draws


class Masked:
    """One student view with hidden tokens (MaskDiT, arXiv:2306.09305, section 3.1)."""

    def __init__(self, params: MaskedParams, *, grid: tuple[int, int]) -> None:
        self.params = params
        self.grid = grid

    def __call__(self, batch: Batch, draws: Draws, schedule: NoiseSchedule, ctx: Context) -> dict[str, View]:
        visible = visible_tokens(self.params, batch, draws, self.grid, ctx)
        return {"student": student_view(batch, draws, schedule, visible=visible)}


class MaskedAndFull:
    """Two student views of one image at one level, one with hidden tokens (MDT, arXiv:2303.14389).

    The full view is that of every other method. As in MDT's code the masked one has noise of its own.
    """

    def __init__(self, params: MaskedAndFullParams, *, grid: tuple[int, int]) -> None:
        self.params = params
        self.grid = grid

    def __call__(self, batch: Batch, draws: Draws, schedule: NoiseSchedule, ctx: Context) -> dict[str, View]:
        full = student_view(batch, draws, schedule)
        noise = full.noise
        if not self.params.shared_noise:
            noise = draws.normal(f"{OWN}/noise", noise.shape[1:]).to(noise)
        masked = replace(
            full,
            x=schedule.perturb(full.x0, noise, full.t),
            noise=noise,
            labels=self.masked_labels(batch, draws, ctx),
            visible=visible_tokens(self.params, batch, draws, self.grid, ctx),
        )
        return {"full": full, "masked": masked}

    def masked_labels(self, batch: Batch, draws: Draws, ctx: Context) -> Tensor:
        """Labels of the masked view [B]: dropped apart from those of the full one, or with them."""
        if self.params.label_drop is None:
            return batch.labels
        dropped = draws.uniform(f"{OWN}/label") < self.params.label_drop
        return torch.where(dropped, ctx.num_classes, batch.true_labels)
