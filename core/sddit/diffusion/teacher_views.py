"""Make the view of a teacher that sees the student's images at another time, for every pair sampler that has one."""

from __future__ import annotations

from torch import Tensor

from sddit.interfaces import NoiseSchedule, View


def earlier_level(sigma: Tensor, gap: Tensor, *, sigma_data: float = 1.0) -> Tensor:
    """Return the noise levels [B] that are earlier by `gap` [B] on the linear path, at least 0, variance-exploding.

    Data of standard deviation `sigma_data` has the time tau = sigma / (sigma + sigma_data) on the path x = (1 - tau) x0
    + tau sigma_data eps through the same noisy image (SRA, arXiv:2505.02831).
    """
    tau = (sigma / (sigma_data + sigma) - gap).clamp(min=0)
    return sigma_data * tau / (1 - tau)


def teacher_view(
    student: View,
    schedule: NoiseSchedule,
    t: Tensor,
    *,
    noise: Tensor | None = None,
    labels: Tensor | None = None,
    visible: Tensor | None = None,
) -> View:
    """Return the student's images at the times t [B] for the teacher.

    Args:
        student: the view with the images.
        schedule: defines the meaning of t.
        t: the teacher's times.
        noise: unit noise [B, C, H, W]; None: the student's.
        labels: [B]; None: the student's, after label dropout.
        visible: tokens that the teacher sees, [B, K]; None: all.
    """
    noise = student.noise if noise is None else noise
    return View(
        network="teacher",
        x=schedule.perturb(student.x0, noise, t),
        t=t,
        labels=student.labels if labels is None else labels,
        x0=student.x0,
        noise=noise,
        visible=visible,
    )
