"""Define the plain pair sampler, and the student's view and mask that every pair sampler shares."""

from __future__ import annotations

from torch import Tensor

from sddit.diffusion import masking
from sddit.interfaces import Batch, Context, Draws, NoiseSchedule, View
from sddit.value_schedules import value_at
from sddit_dit.view_params import MaskedViewParams, SingleParams


def student_view(batch: Batch, draws: Draws, schedule: NoiseSchedule, *, visible: Tensor | None = None) -> View:
    """Return the view x_t = alpha(t) x0 + sigma(t) eps at a drawn noise level, with the tokens `visible` [B, K].

    Every method draws noise level and noise for the purposes `level` and `noise`, so that all arms of a seed train on
    the same noisy images.
    """
    t = schedule.t_from_uniform(draws.uniform("level"))  # [B]
    noise = draws.normal("noise", batch.x0.shape[1:]).to(batch.x0)  # [B, C, H, W]
    x = schedule.perturb(batch.x0, noise, t)
    return View(
        network="student",
        x=x,
        t=t,
        labels=batch.labels,
        x0=batch.x0,
        noise=noise,
        visible=visible,
        extras=dict(batch.extras),
    )


def visible_tokens(
    params: MaskedViewParams, batch: Batch, draws: Draws, grid: tuple[int, int], ctx: Context
) -> Tensor | None:
    """Draw the tokens [B, K] that the student sees at this step, for the purpose `mask`; None if nothing is hidden."""
    ratio = value_at(params.mask_ratio, ctx.step, ctx.total_steps)
    return masking.draw_mask(
        draws,
        "mask",
        grid=grid,
        ratio=masking.draw_ratio(draws, ratio, params.mask_spread),
        shape=params.mask_shape,
        device=batch.x0.device,
    )


class Single:
    """Make one full view of each image: DiT (arXiv:2212.09748)."""

    def __init__(self, params: SingleParams, *, grid: tuple[int, int]) -> None:
        pass

    def __call__(self, batch: Batch, draws: Draws, schedule: NoiseSchedule, ctx: Context) -> dict[str, View]:
        return {"student": student_view(batch, draws, schedule)}
