"""Define the pair sampler of SD-DiT."""

from __future__ import annotations

import torch
from torch import Tensor

from sddit.diffusion.teacher_views import earlier_level, teacher_view
from sddit.interfaces import Batch, Context, Draws, NoiseSchedule, View
from sddit_discrimination.params import PfOdeParams
from sddit_dit.pairs import student_view, visible_tokens

OWN = "discrimination/pf_ode"  # prefix of the purposes of this component's own draws


class PfOde:
    """x_S = x0 + sigma_S eps for the student and x_T = x0 + sigma_T eps for the teacher (arXiv:2403.17004).

    With the score of one image, (x0 - x) / sigma^2, the probability-flow ODE is dx/dsigma = (x - x0) / sigma: a
    straight ray, so x_T - x0 = (sigma_T / sigma_S) (x_S - x0) is on the student's trajectory. Consistency training
    builds pairs in the same way (arXiv:2303.01469, section 5).
    """

    def __init__(self, params: PfOdeParams, *, grid: tuple[int, int]) -> None:
        self.params = params
        self.grid = grid

    def __call__(self, batch: Batch, draws: Draws, schedule: NoiseSchedule, ctx: Context) -> dict[str, View]:
        visible = visible_tokens(self.params, batch, draws, self.grid, ctx)
        student = student_view(batch, draws, schedule, visible=visible)
        return {"student": student, "teacher": self.teacher_view(student, draws, schedule, ctx)}

    def teacher_view(self, student: View, draws: Draws, schedule: NoiseSchedule, ctx: Context) -> View:
        """Return the same images at the teacher's noise level."""
        params, t = self.params, student.t
        if params.teacher_noise != "same":
            level = self.teacher_level(schedule.sigma(t) / schedule.alpha(t), draws)
            t = schedule.t_from_sigma(schedule.snap(level))
        noise = student.noise
        if not params.shared_noise:
            noise = draws.normal(f"{OWN}/noise", noise.shape[1:]).to(noise)
        labels = student.labels
        if params.teacher_label == "null":
            labels = torch.full_like(labels, ctx.num_classes)
        visible = student.visible if params.teacher_mask == "visible" else None
        return teacher_view(student, schedule, t, noise=noise, labels=labels, visible=visible)

    def teacher_level(self, sigma: Tensor, draws: Draws) -> Tensor:
        """Return sigma_T [B] for the student's sigma [B]; drawn values never exceed the student's."""
        minimum = self.params.teacher_sigma
        if self.params.teacher_noise == "fixed":
            return torch.full_like(sigma, minimum)
        u = draws.uniform(f"{OWN}/level").to(sigma)
        if self.params.teacher_noise == "below":
            level = minimum + u * (sigma - minimum)
        else:
            level = earlier_level(sigma, self.params.teacher_offset * u)
        return level.clamp(min=minimum).minimum(sigma)
