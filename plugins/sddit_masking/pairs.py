"""Define the pair samplers of MaskDiT and MDT."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from sddit.interfaces import Batch, Context, Draws, NoiseSchedule, View
from sddit_dit.pairs import dropped_paths, student_view, visible_tokens
from sddit_masking.params import MaskedAndFullParams, MaskedParams

OWN = "masking/masked_and_full"  # prefix of the purposes of that component's own draws


class Masked:
    """Make one student view with hidden tokens (MaskDiT, arXiv:2306.09305, section 3.1)."""

    def __init__(self, params: MaskedParams, *, grid: tuple[int, int]) -> None:
        self.params = params
        self.grid = grid

    def __call__(self, batch: Batch, draws: Draws, schedule: NoiseSchedule, ctx: Context) -> dict[str, View]:
        visible = visible_tokens(self.params, batch, draws, self.grid, ctx)
        dropped = dropped_paths(self.params, draws, ctx)
        return {"student": student_view(batch, draws, schedule, visible=visible, dense_path=dropped)}


class MaskedAndFull:
    """Make two student views of each image at one noise level, one with hidden tokens (MDT, arXiv:2303.14389).

    The full view equals that of every other method. The masked view has its own noise, as in MDT's code.
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
            dense_path=dropped_paths(self.params, draws, ctx),
        )
        return {"full": full, "masked": masked}

    def masked_labels(self, batch: Batch, draws: Draws, ctx: Context) -> Tensor:
        """Return the labels of the masked view [B], dropped independently of the full view or as in it."""
        if self.params.label_drop is None:
            return batch.labels
        dropped = draws.uniform(f"{OWN}/label") < self.params.label_drop
        return torch.where(dropped, ctx.num_classes, batch.true_labels)
