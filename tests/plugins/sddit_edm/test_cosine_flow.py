"""Test the flow schedule on cosine paths: its velocity, its times, and the network's time and sign."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from sddit.interfaces import View
from sddit_edm.cosine_flow import CosineFlow
from sddit_edm.cosine_params import CosineFlowParams
from sddit_edm.flow import Flow
from sddit_edm.loss import native_target
from sddit_edm.params import FlowParams


def cosine_flow(**settings: Any) -> CosineFlow:
    return CosineFlow(CosineFlowParams(**settings))


def images() -> tuple[Tensor, Tensor, Tensor]:
    x0, noise = torch.randn(2, 5, 2, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return x0, noise, torch.linspace(0.001, 0.999, 5, dtype=torch.float64)


@pytest.mark.parametrize(("direction", "sign"), [("noise", 1), ("data", -1)])
def test_the_network_predicts_the_derivative_of_the_path(direction: str, sign: int) -> None:
    schedule, (x0, noise, t) = cosine_flow(direction=direction), images()
    labels = torch.zeros(5, dtype=torch.int64)
    look = View(network="student", x=schedule.perturb(x0, noise, t), t=t, labels=labels, x0=x0, noise=noise)
    target = native_target(schedule, look, torch.float64)
    angle = (math.pi / 2 * t)[:, None, None, None]
    velocity = math.pi / 2 * (angle.cos() * noise - angle.sin() * x0)
    torch.testing.assert_close(target, sign * velocity, rtol=1e-11, atol=1e-11)
    assert not torch.allclose(target, sign * (noise - x0), rtol=1e-2)  # that of the linear path
    step = 1e-6
    slope = (schedule.perturb(x0, noise, t + step) - schedule.perturb(x0, noise, t - step)) / (2 * step)
    torch.testing.assert_close(target, sign * slope, rtol=1e-7, atol=1e-8)

    c = schedule.scalings(t)
    back = c.c_skip[:, None, None, None] * look.x + c.c_out[:, None, None, None] * target
    torch.testing.assert_close(back, x0, rtol=1e-12, atol=1e-12)


def test_the_network_gets_the_time_of_its_direction() -> None:
    t = torch.tensor([0.25, 0.75], dtype=torch.float64)
    assert cosine_flow().scalings(t).c_noise.tolist() == [0.25, 0.75]
    assert cosine_flow(direction="data").scalings(t).c_noise.tolist() == [0.75, 0.25]


def test_training_times() -> None:
    """Those of the logit-normal have the noise levels of the linear path with the same keys."""
    u = torch.tensor([0.01, 0.25, 0.5, 0.8, 0.99], dtype=torch.float64)
    assert torch.equal(cosine_flow().t_from_uniform(u), u)
    keys = {"t_sampling": "logit_normal", "logit_mean": -0.4, "logit_std": 1.3}
    schedule = cosine_flow(**keys)
    t = schedule.t_from_uniform(u)
    expected = 2 / math.pi * torch.atan(torch.exp(1.3 * torch.special.ndtri(u) - 0.4))
    torch.testing.assert_close(t, expected, rtol=1e-12, atol=0)
    linear = Flow(FlowParams(**keys)).t_from_uniform(u)
    torch.testing.assert_close(schedule.sigma(t) / schedule.alpha(t), linear / (1 - linear), rtol=1e-12, atol=0)
    assert (t - linear).abs().max() > 1e-2
    single = schedule.t_from_uniform(u.float())
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), t, rtol=2e-7, atol=0)


def test_float32_keeps_its_digits_near_pure_noise() -> None:
    t = torch.tensor([1 - 2.0**-23], dtype=torch.float32)
    exact = math.sin(math.pi / 2 * 2.0**-23)
    assert cosine_flow().alpha(t).item() == pytest.approx(exact, rel=1e-6)
    assert torch.cos(math.pi / 2 * t).item() != pytest.approx(exact, rel=1e-2)


def test_times_that_do_not_rise_are_rejected() -> None:
    with pytest.raises(ValidationError, match="t_min must be below t_max"):
        CosineFlowParams(t_min=0.5, t_max=0.4)
