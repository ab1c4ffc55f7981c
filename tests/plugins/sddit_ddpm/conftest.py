"""Fixtures of the DDPM tests: public components, the closed-form network of the stored numbers, differences."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sddit
from sddit.interfaces import Outputs, View

Loss = Callable[..., Tensor]


class Stub(nn.Module):
    """The network of the stored numbers: eps = (0.2 + 0.8 u) x + 0.1 sin 3x and v = sin(2x + 5u), with u = t / 1000."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []  # c_noise of each call

    def forward(self, x: Tensor, c_noise: Tensor, labels: Tensor, **_: Any) -> tuple[Tensor, dict[str, Any], Any]:
        self.seen.append(c_noise)
        u = c_noise[:, None, None, None] / 1000
        eps = x * (0.2 + 0.8 * u) + 0.1 * torch.sin(3 * x)
        return torch.cat([eps, torch.sin(2 * x + 5 * u)], dim=1), {}, {}


@pytest.fixture
def stub() -> Stub:
    return Stub()


@pytest.fixture
def look() -> Callable[..., View]:
    """`look(schedule, x0, noise, t)`: the student's view of x0 [B, C, H, W] at timesteps t [B]."""

    def view(schedule: Any, x0: Tensor, noise: Tensor, t: Tensor) -> View:
        t, labels = t.to(x0.dtype), torch.zeros(len(t), dtype=torch.int64)
        return View(network="student", x=schedule.perturb(x0, noise, t), t=t, labels=labels, x0=x0, noise=noise)

    return view


@pytest.fixture
def hybrid() -> Loss:
    """`hybrid(schedule, view, output, **settings)`: the loss [B] of an output [B, 2 C, H, W] or [B, C, H, W]."""

    def loss(schedule: Any, view: View, output: Tensor, **settings: Any) -> Tensor:
        term = sddit.build("losses", "hybrid", settings)
        channels = view.x0.shape[1]
        extra = output[:, channels:] if schedule.outputs > 1 else None
        context: Any = SimpleNamespace(schedule=schedule)
        value: Tensor = term(context, {"a": view}, {"a": Outputs(raw=output[:, :channels], extra=extra)})
        return value

    return loss


@pytest.fixture
def relative_difference() -> Callable[[Any, Any], float]:
    """`relative_difference(ours, theirs)`: maximum difference relative to max(1, |theirs|), of nonzero outputs."""

    def distance(ours: Any, theirs: Any) -> float:
        a, b = (torch.as_tensor(x, dtype=torch.float64) for x in (ours, theirs))
        assert a.shape == b.shape
        assert b.abs().max() > 1e-3
        return ((a - b).abs() / b.abs().clamp(min=1)).max().item()

    return distance
