"""Test the flow schedule: identities and published implementation."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor

from sddit.interfaces import Outputs, View
from sddit.recipes.resolve import resolve
from sddit_edm.flow import Flow
from sddit_edm.loss import Denoising, native_target
from sddit_edm.params import DenoisingParams, FlowParams


def flow(**settings: Any) -> Flow:
    return Flow(FlowParams(**settings))


def view(schedule: Flow, x0: Tensor, noise: Tensor, t: Tensor) -> View:
    labels = torch.zeros(len(x0), dtype=torch.int64)
    return View(network="student", x=schedule.perturb(x0, noise, t), t=t, labels=labels, x0=x0, noise=noise)


TIMES = {"uniform": "uniform", "lognormal": "logit_normal"}
"""What REPA calls the ways to draw t, and what we do."""


@pytest.mark.parametrize("drawn", TIMES)
def test_a_training_step_of_the_published_implementation(published: Callable[[str], Any], drawn: str) -> None:
    stored = published("align_a")
    draws = {"uniform": stored.inputs["uniform_t"], "lognormal": torch.special.ndtr(stored.inputs["normal_t"])}
    schedule = flow(t_sampling=TIMES[drawn])
    t = schedule.t_from_uniform(draws[drawn].flatten())
    look = view(schedule, stored.inputs["images"], stored.inputs["noise"], t)
    expected = {key: stored.outputs[f"repa/{drawn}/{key}"] for key in ("model_t", "model_input", "denoising")}

    c = schedule.scalings(t)
    torch.testing.assert_close(c.c_noise, expected["model_t"].flatten(), rtol=1e-12, atol=0)
    torch.testing.assert_close(c.c_in[:, None, None, None] * look.x, expected["model_input"], rtol=1e-12, atol=1e-13)
    term = Denoising(DenoisingParams(), grid=(2, 2), widths={}, image=(4, 8, 8), num_classes=2)

    def loss(raw: Tensor, schedule: Flow) -> Tensor:
        context: Any = SimpleNamespace(schedule=schedule)
        return term(context, {"student": look}, {"student": Outputs(raw=raw)})

    raw = stored.inputs["model_output"]
    torch.testing.assert_close(loss(raw, schedule), expected["denoising"], rtol=1e-10, atol=0)
    torch.testing.assert_close(loss(-raw, flow(direction="data")), expected["denoising"], rtol=1e-10, atol=0)
    assert not torch.allclose(loss(-raw, schedule), expected["denoising"], rtol=1e-2)


@pytest.mark.parametrize(("direction", "sign"), [("noise", 1), ("data", -1)])
def test_the_network_predicts_the_velocity(direction: str, sign: int) -> None:
    schedule = flow(direction=direction)
    x0, noise = torch.randn(2, 5, 2, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    t = torch.linspace(0.001, 0.999, 5, dtype=torch.float64)
    look = view(schedule, x0, noise, t)
    target = native_target(schedule, look, torch.float64)
    torch.testing.assert_close(target, sign * (noise - x0), rtol=1e-11, atol=1e-11)
    step = 1e-6
    velocity = (schedule.perturb(x0, noise, t + step) - schedule.perturb(x0, noise, t - step)) / (2 * step)
    torch.testing.assert_close(target, sign * velocity, rtol=1e-7, atol=1e-8)

    c = schedule.scalings(t)
    back = c.c_skip[:, None, None, None] * look.x + c.c_out[:, None, None, None] * target
    torch.testing.assert_close(back, x0, rtol=1e-12, atol=1e-12)


def test_the_network_gets_the_time_of_its_direction() -> None:
    t = torch.tensor([0.25, 0.75], dtype=torch.float64)
    assert flow().scalings(t).c_noise.tolist() == [0.25, 0.75]
    assert flow(time_scale=1000.0).scalings(t).c_noise.tolist() == [250.0, 750.0]
    assert flow(direction="data").scalings(t).c_noise.tolist() == [0.75, 0.25]
    assert flow(direction="data", time_scale=4.0).scalings(t).c_noise.tolist() == [3.0, 1.0]


def test_training_times() -> None:
    u = torch.tensor([0.01, 0.25, 0.5, 0.8, 0.99], dtype=torch.float64)
    assert torch.equal(flow().t_from_uniform(u), u)
    t = flow(t_sampling="logit_normal", logit_mean=-0.4, logit_std=1.3).t_from_uniform(u)
    torch.testing.assert_close((t.logit() + 0.4) / 1.3, torch.special.ndtri(u), rtol=1e-12, atol=1e-12)
    assert t[2].item() == pytest.approx(1 / (1 + math.exp(0.4)), rel=1e-14)
    single = flow(t_sampling="logit_normal", logit_mean=-0.4, logit_std=1.3).t_from_uniform(u.float())
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), t, rtol=2e-7, atol=0)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 1e-6)])
def test_levels_near_both_ends(dtype: torch.dtype, tolerance: float) -> None:
    """In float32 the t nearest to 1 differ by 6e-8: a noise level of 1e5 is exact to 1 %, and x to rounding."""
    schedule = flow(t_min=1e-5, t_max=1 - 1e-5)
    ends = torch.logspace(-5, -0.5, 50, dtype=dtype)
    for t in (ends, 1 - ends):
        level = schedule.sigma(t) / schedule.alpha(t)
        exact = t.double() / (1 - t.double())
        torch.testing.assert_close(level.double(), exact, rtol=tolerance, atol=0)
        torch.testing.assert_close(schedule.t_from_sigma(level), t, rtol=tolerance, atol=0)
        x0, noise = torch.randn(2, 50, 1, 2, 2, generator=torch.Generator().manual_seed(0), dtype=dtype)
        x = schedule.perturb(x0, noise, t)
        c = schedule.scalings(t)
        back = x + c.c_out[:, None, None, None] * native_target(schedule, view(schedule, x0, noise, t), dtype)
        torch.testing.assert_close(back, x0, rtol=0, atol=10 * tolerance)
        assert x.dtype == dtype


def test_noise_is_added_in_the_dtype_of_the_images() -> None:
    x0, noise = torch.randn(2, 3, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    t = torch.tensor([0.002, 0.5, 0.999], dtype=torch.float64)
    x = flow().perturb(x0, noise, t)
    exact = (1 - t[:, None, None, None]) * x0.double() + t[:, None, None, None] * noise.double()
    assert x.dtype == torch.float32
    torch.testing.assert_close(x.double(), exact, rtol=1e-6, atol=1e-6)


def test_its_range() -> None:
    params = FlowParams(t_min=0.2, t_max=0.75)
    assert params.t_range == (0.2, 0.75)
    assert params.level_range == pytest.approx((0.25, 3.0), rel=1e-15)
    assert Flow(params).sigma_range == params.level_range
    t = torch.tensor([0.2, 0.4, 0.75], dtype=torch.float64)
    assert torch.equal(Flow(params).noise_fraction(t), t)
    assert torch.equal(Flow(params).snap(t), t)


@given(kind=st.sampled_from(["edm", "log", "native"]), steps=st.integers(2, 200), rho=st.floats(0.1, 100))
def test_every_grid_falls_to_zero_through_exact_ends(kind: str, steps: int, rho: float) -> None:
    grid = flow().grid(steps, kind=kind, sigma_min=0.002, sigma_max=500.0, rho=rho)
    assert all(isinstance(level, float) for level in grid)
    assert (len(grid), grid[0], grid[-2], grid[-1]) == (steps + 1, 500.0, 0.002, 0.0)
    assert all(above > below for above, below in pairwise(grid))


def test_the_native_grid_is_even_in_t() -> None:
    schedule = flow(t_min=0.1, t_max=0.9)
    low, high = schedule.sigma_range
    grid = schedule.grid(5, kind="native", sigma_min=low, sigma_max=high, rho=7.0)
    assert [level / (1 + level) for level in grid] == pytest.approx([0.9, 0.7, 0.5, 0.3, 0.1, 0.0], rel=1e-14)


@pytest.mark.parametrize(
    "settings",
    [
        {"t_min": 0.0},
        {"t_max": 1.0},
        {"t_min": 0.6, "t_max": 0.5},
        {"logit_std": 0.0},
        {"t_sampling": "normal"},
        {"direction": "up"},
        {"time_scale": 0.0},
        {"sigma_data": 0.5},
    ],
)
def test_invalid_settings_are_rejected(settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        FlowParams(**settings)


def test_settings_without_effect_are_reported(tmp_path: Path) -> None:
    path = tmp_path / "tiny.toml"
    path.write_text('extends = "digits/dit"\n[noise_schedule]\nname = "flow"\n', encoding="utf-8")
    keys = ["noise_schedule.logit_mean=0.5", "noise_schedule.logit_std=2.0"]
    assert set(resolve(path, keys).idle) == {"noise_schedule.logit_mean", "noise_schedule.logit_std"}
    assert resolve(path, [*keys, "noise_schedule.t_sampling=logit_normal"]).idle == ()

    assert set(resolve(path, ["loss.denoise.snr_gamma=3.0"]).idle) == {"loss.denoise.snr_gamma"}
    weighted = ["loss.denoise.snr_gamma=3.0", "loss.denoise.weighting=min_snr"]
    assert resolve(path, weighted).idle == ()
    assert set(resolve(path, [*weighted, "loss.denoise.space=x0"]).idle) == {"loss.denoise.space"}
