"""Check averages of weights with power-function profiles, and those that are made of stored ones."""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import torch
from torch import nn

from sddit.backbones import Backbone
from sddit.interfaces import CheckContext, Measurement
from sddit.recipes.settings import EmaSettings
from sddit.training.ema import EMA
from sddit.training.power_average import Profile, combination, gamma_of, sigma_rel_of

STEPS, EVERY = 400, 4
STORED = (0.05, 0.1)
WANTED = (0.03, 0.07, 0.15, 0.2)
POWERS = (0.0, 0.5, 1.0, 2.0)


class Path(nn.Module):
    """Weights that follow t^a, a number for each a."""

    def __init__(self) -> None:
        super().__init__()
        self.powers = torch.tensor(POWERS, dtype=torch.float64)
        self.weight = nn.Parameter(torch.zeros(len(POWERS), dtype=torch.float64))

    @torch.no_grad()
    def move(self, step: int) -> None:
        self.weight.copy_((step / STEPS) ** self.powers)


def posthoc_ema(context: CheckContext) -> Iterator[Measurement]:
    """Average recorded paths t^a directly, and by combining snapshots of two averages of other widths."""
    inverses = max(abs(sigma_rel_of(gamma_of(width)) / width - 1) for width in (*STORED, *WANTED, 0.02, 0.28))
    yield Measurement("width of the exponent of a width, relative difference", inverses, 1e-10)

    path = Path()
    emas = {
        width: EMA(EmaSettings(profile="power", sigma_rel=width), cast(Backbone, path)) for width in STORED + WANTED
    }
    profiles, snapshots = [], []
    for step in range(1, STEPS + 1):
        path.move(step)
        for ema in emas.values():
            ema.update(path, step - 1, step)
        if step % EVERY == 0:
            profiles += [Profile(step, gamma_of(width)) for width in STORED]
            snapshots += [weight_of(emas[width]) for width in STORED]
    stored = torch.stack(snapshots)  # [snapshots, powers]
    for width in WANTED:
        factors = torch.from_numpy(combination(profiles, Profile(STEPS, gamma_of(width))))
        made, direct = factors @ stored, weight_of(emas[width])
        yield Measurement(f"sigma_rel {width}: average of t^a, relative difference", distance(made, direct), 1e-3)
        yield Measurement(
            f"sigma_rel {width}: sum of the factors, distance from 1", abs(float(factors.sum()) - 1), 1e-3
        )
    nearest = min(distance(weight_of(emas[width])[1:], direct[1:]) for width in STORED)
    yield Measurement("control: relative difference of the nearest stored average", nearest, 1e-2, ">=")


def weight_of(ema: EMA) -> torch.Tensor:
    return ema.module.get_parameter("weight").detach().clone()


def distance(one: torch.Tensor, two: torch.Tensor) -> float:
    return float(((one - two) / two).abs().max())
