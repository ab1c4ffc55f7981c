"""Make noisy views of given images and the context of a loss, for Python."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from sddit.diffusion.draws import KeyedDraws
from sddit.errors import error
from sddit.interfaces import Context, Network, NoiseSchedule, View
from sddit.recipes.parsing import MAX_INTEGER
from sddit.training.arguments import (
    images_argument,
    labels_argument,
    levels_argument,
    network_argument,
    schedule_argument,
    visible_argument,
    whole_argument,
    wrong_argument,
)


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
    """Return a noisy view of given images.

    Args:
        schedule: defines the meaning of t.
        x0: clean images [B, C, H, W].
        noise: unit noise [B, C, H, W].
        t: noise levels [B] in the schedule's own time.
        labels: [B]; the number of classes is the null label.
        visible: [B, K] tokens that are not hidden, ascending; None: all.
        network: the network that receives the view.
    """
    schedule, x0 = schedule_argument(schedule), images_argument(x0, "x0")
    noise, t = images_argument(noise, "noise", x0.shape[1:]), levels_argument(t, "t", len(x0))
    if len(noise) != len(x0):
        got, expect = f"{len(noise)} images", f"{len(x0)}, as x0"
        raise error("SD-T925", "noise is of another number of images", where="noise", got=got, expect=expect)
    return View(
        network=network_argument(network),
        x=schedule.perturb(x0, noise, t),
        t=t,
        labels=labels_argument(labels, len(x0)),
        x0=x0,
        noise=noise,
        visible=visible_argument(visible, len(x0)),
    )


def context(
    schedule: NoiseSchedule,
    *,
    num_classes: int = 0,
    step: int = 0,
    total_steps: int = 1,
    seed: int = 0,
    ema_modules: Mapping[str, nn.Module] | None = None,
) -> Context:
    """Return the context of a loss at one point in training.

    Args:
        schedule: noise schedule of the views.
        num_classes: the null label.
        step, total_steps: the point in training, for value schedules.
        seed: for the draws of the loss itself.
        ema_modules: the teacher's copies of the modules of the loss.
    """
    if ema_modules is not None and not isinstance(ema_modules, Mapping):
        raise wrong_argument("ema_modules is not a mapping", "ema_modules", ema_modules, "{name: module}")
    step = whole_argument(step, "step", 0, MAX_INTEGER)
    seed = whole_argument(seed, "seed", 0, MAX_INTEGER)
    return Context(
        step=step,
        total_steps=whole_argument(total_steps, "total_steps", 1, MAX_INTEGER),
        schedule=schedule_argument(schedule),
        draws=KeyedDraws(seed, step, torch.zeros(1, dtype=torch.int64)),
        num_classes=whole_argument(num_classes, "num_classes", 0, MAX_INTEGER),
        ema_modules=ema_modules or {},
    )
