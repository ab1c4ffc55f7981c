"""Losses and networks on given noise, levels and masks: what notebooks and comparisons need in place of a run's own draws.

view = sddit.view(model.schedule, x0, noise, t, labels, visible=kept)
outputs = sddit.observe(model, view)
error = loss(sddit.context(model.schedule, num_classes=10), {"student": view}, {"student": outputs})       # [B]
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from sddit.denoiser import denoise_view
from sddit.draws import Draws
from sddit.interfaces import Backbone, Context, Network, NoiseSchedule, Outputs, Tap, View

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sddit.api import Model


def view(
    schedule: NoiseSchedule,
    x0: Tensor,
    noise: Tensor,
    t: Tensor,
    labels: Tensor,
    *,
    visible: Tensor | None = None,
    network: Network = "student",
) -> View:
    """A noisy look at given images.

    Args:
        schedule: what t means.
        x0: clean images [B, C, H, W].
        noise: unit noise [B, C, H, W].
        t: noise levels [B] in the schedule's own time.
        labels: [B]; the number of classes is the null label.
        visible: [B, K] tokens that are not hidden, rising; None: all.
        network: which network sees it.
    """
    x = schedule.perturb(x0, noise, t)
    return View(network=network, x=x, t=t, labels=labels, x0=x0, noise=noise, visible=visible)


def observe(model: Model, seen: View, *, taps: Sequence[Tap] = (), output: bool = True) -> Outputs:
    """What a loaded network gives for a view, with gradient: its own output, the x0 made of it, tokens at `taps`."""
    return denoise_view(cast(Backbone, model.backbone), model.require_schedule(), seen, taps, output)


def context(
    schedule: NoiseSchedule,
    *,
    num_classes: int = 0,
    step: int = 0,
    total_steps: int = 1,
    seed: int = 0,
    averaged: Mapping[str, nn.Module] | None = None,
) -> Context:
    """What a loss may know of a run: a moment of one.

    Args:
        schedule: that of the views.
        num_classes: the null label.
        step, total_steps: the moment, for schedules of values.
        seed: of what the loss draws by itself.
        averaged: the teacher's copy of the loss's own modules.
    """
    return Context(
        step=step,
        total_steps=total_steps,
        schedule=schedule,
        draws=Draws(seed, step, torch.zeros(1, dtype=torch.int64)),
        num_classes=num_classes,
        averaged=averaged or {},
    )
