"""The plain pair sampler, and what every pair sampler shares: the student's view and the drawing of its mask."""

from __future__ import annotations

from torch import Tensor

from sddit.diffusion import masking as masks
from sddit.interfaces import Batch, Context, Draws, NoiseSchedule, View
from sddit.value_schedules import value_at
from sddit_dit.view_params import MaskedViewParams, SingleParams


def student_view(batch: Batch, draws: Draws, schedule: NoiseSchedule, *, visible: Tensor | None = None) -> View:
    """x_t = alpha(t) x0 + sigma(t) eps at a training level, with the tokens at `visible` [B, K] seen.

    Level and noise have the purposes `level` and `noise` in every method, so that all arms of a seed train on the same
    noisy images.
    """
    t = schedule.t_from_uniform(draws.uniform("level"))  # [B]
    noise = draws.normal("noise", batch.x0.shape[1:]).to(batch.x0)  # [B, C, H, W]
    x = schedule.perturb(batch.x0, noise, t)
    return View(network="student", x=x, t=t, labels=batch.labels, x0=batch.x0, noise=noise, visible=visible)


def visible_tokens(
    params: MaskedViewParams, batch: Batch, draws: Draws, grid: tuple[int, int], ctx: Context
) -> Tensor | None:
    """The tokens [B, K] that the student sees at this step, or None where nothing is hidden. Every method draws `mask`."""
    ratio = value_at(params.mask_ratio, ctx.step, ctx.total_steps)
    return masks.draw(
        draws,
        "mask",
        grid=grid,
        ratio=masks.drawn_ratio(draws, ratio, params.mask_spread),
        shape=params.mask_shape,
        device=batch.x0.device,
    )


class Single:
    """One full view of each image: DiT (arXiv:2212.09748)."""

    def __init__(self, params: SingleParams, *, grid: tuple[int, int]) -> None:
        pass

    def __call__(self, batch: Batch, draws: Draws, schedule: NoiseSchedule, ctx: Context) -> dict[str, View]:
        return {"student": student_view(batch, draws, schedule)}
