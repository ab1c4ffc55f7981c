"""Define the pair sampler of SRA (arXiv:2505.02831)."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from sddit.diffusion.teacher_views import earlier_level, teacher_view
from sddit.interfaces import Batch, Context, Draws, NoiseSchedule, View
from sddit_alignment.pair_params import OffsetPairParams
from sddit_dit.pairs import student_view, visible_tokens

GAP = "alignment/offset_pair/gap"
"""Purpose of this component's own draw."""


class OffsetPair:
    """(x_t, t) for the student and (x_s, s) for the teacher, s = max(t - u, t_min), u ~ U(0, offset) per sample.

    Image, noise and label, after label dropout, are the same in both views (arXiv:2505.02831, section 3).
    """

    def __init__(self, params: OffsetPairParams, *, grid: tuple[int, int]) -> None:
        self.params = params
        self.grid = grid

    def __call__(self, batch: Batch, draws: Draws, schedule: NoiseSchedule, ctx: Context) -> dict[str, View]:
        visible = visible_tokens(self.params, batch, draws, self.grid, ctx)
        student = student_view(batch, draws, schedule, visible=visible)
        t = student.t
        if self.params.offset > 0:
            t = self.earlier(t, self.params.offset * draws.uniform(GAP).to(t), schedule)
        views = {"student": student, "teacher": teacher_view(student, schedule, t)}
        if self.params.null_view:
            views["teacher_null"] = replace(views["teacher"], labels=torch.full_like(batch.labels, ctx.num_classes))
        return views

    def earlier(self, t: Tensor, gap: Tensor, schedule: NoiseSchedule) -> Tensor:
        """Return the teacher's times [B] for the student's t [B], earlier by `gap` [B] in units of `time`."""
        params, minimum = self.params, self.params.t_min
        lowest = schedule.sigma_range[0]
        if params.time == "linear":
            if minimum is not None:
                lowest = params.sigma_data * minimum / (1 - minimum)
            sigma = schedule.sigma(t) / schedule.alpha(t)
            level = earlier_level(sigma, gap, sigma_data=params.sigma_data).clamp(min=lowest)
            return schedule.t_from_sigma(schedule.snap(level))
        if minimum is None:
            minimum = float(schedule.t_from_sigma(torch.tensor([lowest], dtype=torch.float64)))
        gap = gap.floor() if params.time == "steps" else gap
        return (t - gap).clamp(min=minimum)
