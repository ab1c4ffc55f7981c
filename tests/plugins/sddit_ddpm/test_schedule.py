"""Test the identities of the DDPM schedule."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pydantic import ValidationError

import sddit
from sddit.errors import SdditError
from sddit.interfaces import Outputs, View
from sddit_ddpm.params import DDPMParams
from sddit_ddpm.schedule import DDPM

Look = Callable[..., View]
ALL = torch.arange(1000, dtype=torch.float64)


def ddpm(**settings: Any) -> DDPM:
    return DDPM(DDPMParams(**settings))


def test_known_values() -> None:
    schedule = ddpm()
    assert schedule.sigma_range == DDPMParams().level_range == pytest.approx((0.0100005, 157.407), rel=1e-5)
    assert schedule.sigma(ALL)[0].item() == pytest.approx(0.01, rel=1e-12)
    assert DDPMParams().t_range == (0.0, 999.0)
    assert (ddpm().outputs, ddpm(learned_variance=False).outputs) == (2, 1)


@pytest.mark.parametrize(
    "settings", [{}, {"betas": "cosine"}, {"respacing": "40,30"}, {"timesteps": 50, "beta_max": 0.3}]
)
def test_identities(settings: dict[str, Any]) -> None:
    schedule = ddpm(**settings)
    t = torch.arange(len(schedule.timesteps), dtype=torch.float64)
    alpha, sigma, c = schedule.alpha(t), schedule.sigma(t), schedule.scalings(t)
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones_like(t), rtol=1e-14, atol=0)
    x0, eps = torch.randn(2, len(t), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    back = c.c_skip * (alpha * x0 + sigma * eps) + c.c_out * eps
    torch.testing.assert_close(back, x0, rtol=1e-9, atol=1e-10 * schedule.sigma_range[1])
    assert (sigma / alpha).diff().min() > 0
    assert c.c_noise.tolist() == schedule.timesteps
    assert torch.equal(schedule.noise_fraction(t), c.c_noise / DDPMParams(**settings).timesteps)
    assert not torch.allclose(c.c_skip * (alpha * x0 + 1.001 * sigma * eps) + c.c_out * eps, x0, rtol=1e-6, atol=1e-3)


def test_timesteps_are_drawn_uniformly() -> None:
    schedule = ddpm()
    u = (torch.arange(5000, dtype=torch.float64) + 0.5) / 5000
    assert torch.equal(schedule.t_from_uniform(u).long().bincount(), torch.full((1000,), 5))
    nearly_one = torch.tensor([1 - 1e-12, 0.9999999], dtype=torch.float64)
    assert schedule.t_from_uniform(nearly_one).tolist() == [999.0, 999.0]
    single = schedule.t_from_uniform(torch.tensor([1 - 2**-24, 2**-33], dtype=torch.float32))
    assert (single.dtype, single.tolist()) == (torch.float32, [999.0, 0.0])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_trained_levels_are_unchanged(dtype: torch.dtype) -> None:
    schedule = ddpm()
    t = ALL.to(dtype)
    level = torch.tensor(schedule.chain.levels, dtype=torch.float64).to(dtype)
    assert torch.equal(schedule.t_from_sigma(level), t)
    assert torch.equal(schedule.snap(level), level)
    torch.testing.assert_close(schedule.sigma(t) / schedule.alpha(t), level, rtol=4 * torch.finfo(dtype).eps, atol=0)


def test_other_levels_snap_to_the_nearest() -> None:
    schedule = ddpm()
    level = torch.tensor(schedule.chain.levels, dtype=torch.float64)
    wanted = torch.logspace(-3, 3, 501, dtype=torch.float64)
    nearest = (wanted[:, None] - level).abs().argmin(1)
    assert torch.equal(schedule.t_from_sigma(wanted), nearest.double())
    assert torch.equal(schedule.snap(wanted), level[nearest])
    assert torch.equal(schedule.snap(schedule.snap(wanted)), schedule.snap(wanted))
    assert not torch.equal(schedule.snap(wanted), wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_noise_is_added_in_the_dtype_of_the_images(dtype: torch.dtype) -> None:
    x0, noise = torch.randn(2, 3, 1, 4, 4, generator=torch.Generator().manual_seed(0), dtype=dtype).unbind(0)
    schedule, t = ddpm(), torch.tensor([0.0, 500.0, 999.0], dtype=torch.float32)
    x = schedule.perturb(x0, noise, t)
    assert x.dtype == dtype
    parts = [schedule.alpha(t.double()), schedule.sigma(t.double())]
    alpha, sigma = (part[:, None, None, None] for part in parts)
    torch.testing.assert_close(x.double(), alpha * x0.double() + sigma * noise.double(), rtol=1e-6, atol=1e-6)


def test_times_keep_their_dtype() -> None:
    t = torch.tensor([3.0, 700.0], dtype=torch.float32)
    c = ddpm().scalings(t)
    assert {x.dtype for x in (ddpm().alpha(t), ddpm().sigma(t), ddpm().noise_fraction(t), c.c_skip, c.c_noise)} == {
        torch.float32
    }


def test_the_denoising_loss_is_the_error_of_the_noise(look: Look) -> None:
    schedule = ddpm(learned_variance=False)
    x0, noise, raw = torch.randn(3, 1000, 1, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    view = look(schedule, x0, noise, ALL)
    term = sddit.build("losses", "denoising", grid=(1, 1))
    context: Any = SimpleNamespace(schedule=schedule)
    value = term(context, {"a": view}, {"a": Outputs(raw=raw)})
    torch.testing.assert_close(value, (raw - noise).square().mean((1, 2, 3)), rtol=1e-10, atol=1e-12)
    assert not torch.allclose(value, (raw - x0).square().mean((1, 2, 3)), rtol=1e-3)


def test_grids_consist_of_trained_levels() -> None:
    schedule = ddpm()
    low, high = schedule.sigma_range
    for kind in DDPMParams().grids:
        grid = schedule.grid(50, kind=kind, sigma_min=low, sigma_max=high, rho=7.0)
        assert len(grid) == 51
        assert grid[-1] == 0.0
        assert set(grid[:-1]) <= set(schedule.chain.levels)
    native = schedule.grid(4, kind="native", sigma_min=low, sigma_max=high, rho=7.0)
    assert native == [schedule.chain.levels[t] for t in (999, 666, 333, 0)] + [0.0]
    with pytest.raises(SdditError, match="SD-T908"):
        schedule.grid(1001, kind="native", sigma_min=low, sigma_max=high, rho=7.0)


@pytest.mark.parametrize(
    "settings",
    [
        {"timesteps": 1},
        {"beta_min": 0.0},
        {"beta_min": 0.03},
        {"beta_max": 1.0},
        {"betas": "sigmoid"},
        {"respacing": "ddim37"},
        {"respacing": "1"},
        {"respacing": "2000"},
        {"timesteps": 10_000},
        {"beta_max": 0.9},
    ],
)
def test_invalid_settings_are_rejected(settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        DDPMParams(**settings)
