"""Test the EDM schedule: identities and published implementation."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor

from sddit_edm.params import EDMParams
from sddit_edm.schedule import EDM

SCALINGS = ("c_skip", "c_out", "c_in", "c_noise")


def edm(**settings: Any) -> EDM:
    return EDM(EDMParams(**settings))


def identities(schedule: EDM, s: Tensor) -> dict[str, Tensor]:
    """Return the residuals of EDM's identities (arXiv:2206.00364, appendix B.6), relative to their terms."""
    c, sd = schedule.scalings(s), schedule.sigma_data
    weight = (s**2 + sd**2) / (s * sd) ** 2
    one_less_skip = s**2 / (s**2 + sd**2)  # 1 - c_skip without cancellation
    return {
        "input": c.c_in**2 * (s**2 + sd**2) - 1,
        "weight": weight * c.c_out**2 - 1,
        "target": (one_less_skip**2 * sd**2 + c.c_skip**2 * s**2) / c.c_out**2 - 1,
        "noise": torch.exp(4 * c.c_noise.double()) / s.double() - 1,
    }


@pytest.mark.parametrize("sigma_data", [0.5, 0.9])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-14), (torch.float32, 1e-6)])
def test_identities(dtype: torch.dtype, tolerance: float, sigma_data: float) -> None:
    s = torch.logspace(math.log10(0.002), math.log10(80), 500, dtype=dtype)
    found = identities(edm(sigma_data=sigma_data), s)
    assert {name: left.abs().max().item() < tolerance for name, left in found.items()} == dict.fromkeys(found, True)


@pytest.mark.parametrize("name", SCALINGS)
def test_the_identities_detect_a_wrong_scaling(name: str) -> None:
    class Wrong(EDM):
        def scalings(self, t: Tensor) -> Any:
            right = super().scalings(t)
            return type(right)(**{k: getattr(right, k) * (1 + 1e-5 * (k == name)) for k in SCALINGS})

    s = torch.logspace(math.log10(0.002), math.log10(80), 500, dtype=torch.float64)
    assert max(left.abs().max().item() for left in identities(Wrong(EDMParams()), s).values()) > 1e-6


@pytest.mark.parametrize("sigma_data", [0.5, 0.9])
def test_scalings_of_the_published_implementation(published: Callable[[str], Any], sigma_data: float) -> None:
    stored = published("edm_a")
    c = edm(sigma_data=sigma_data).scalings(stored.inputs["sigmas"])
    other = edm(sigma_data=sigma_data + 0.001).scalings(stored.inputs["sigmas"])
    for name in SCALINGS:
        expected = stored.outputs[f"precond/{sigma_data}/{name}"]
        torch.testing.assert_close(getattr(c, name), expected, rtol=1e-12, atol=1e-14)
        assert name == "c_noise" or not torch.allclose(getattr(other, name), expected, rtol=1e-5)


def test_known_values() -> None:
    c = edm().scalings(torch.tensor([0.002], dtype=torch.float64))
    assert c.c_noise.item() == pytest.approx(-1.5537, abs=5e-5)
    assert c.c_in.item() == pytest.approx(2.0, abs=5e-5)


def test_training_levels_of_the_published_implementation(published: Callable[[str], Any]) -> None:
    stored = published("edm_a")
    normal = stored.inputs["rnd_normal"].flatten()
    levels = edm().t_from_uniform(torch.special.ndtr(normal))
    torch.testing.assert_close(levels, stored.outputs["loss/0.5/weight_sigma"][1], rtol=1e-12, atol=0)
    assert not torch.allclose(edm(p_std=1.201).t_from_uniform(torch.special.ndtr(normal)), levels, rtol=1e-6)


def test_training_levels_are_log_normal() -> None:
    u = torch.tensor([0.05, 0.25, 0.5, 0.75, 0.95], dtype=torch.float64)
    assert edm().t_from_uniform(u).tolist() == pytest.approx([0.042, 0.134, 0.301, 0.677, 2.17], rel=6e-3)
    shifted = edm(p_mean=0.5, p_std=0.25).t_from_uniform(u)
    assert shifted[2].item() == pytest.approx(math.exp(0.5), rel=1e-14)
    assert (shifted[4] / shifted[2]).log().item() == pytest.approx(0.25 * 1.6448536269514722, rel=1e-12)


def test_training_levels_are_computed_in_float64() -> None:
    u = torch.tensor([1e-7, 0.3, 0.99], dtype=torch.float32)
    levels = edm().t_from_uniform(u)
    assert levels.dtype == torch.float32
    assert torch.equal(levels, edm().t_from_uniform(u.double()).float())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_noise_is_added_in_the_dtype_of_the_images(dtype: torch.dtype) -> None:
    x0, noise = torch.randn(2, 3, 1, 4, 4, dtype=dtype).unbind(0)
    t = torch.tensor([0.002, 1.0, 80.0], dtype=torch.float64)
    schedule = edm()
    x = schedule.perturb(x0, noise, t)
    assert x.dtype == dtype
    parts = (
        schedule.alpha(t)[:, None, None, None] * x0.double() + schedule.sigma(t)[:, None, None, None] * noise.double()
    )
    torch.testing.assert_close(x.double(), parts, rtol=1e-6, atol=1e-6)
    assert not torch.allclose(schedule.perturb(x0, noise, t.flip(0)).double(), parts, rtol=1e-3)


def test_the_time_is_the_noise_level() -> None:
    t = torch.tensor([0.002, 0.7, 80.0], dtype=torch.float64)
    schedule = edm(sigma_min=0.01, sigma_max=50.0)
    assert torch.equal(schedule.t_from_sigma(t), t)
    assert torch.equal(schedule.snap(t), t)
    assert torch.equal(schedule.sigma(t) / schedule.alpha(t), t)
    assert schedule.sigma_range == EDMParams(sigma_min=0.01, sigma_max=50.0).t_range == (0.01, 50.0)


@pytest.mark.parametrize("steps", [5, 18, 40])
def test_grids_of_the_published_implementation(published: Callable[[str], Any], steps: int) -> None:
    expected = published("edm_a").outputs[f"heun/{steps}/grid"].tolist()
    grid = edm().grid(steps, kind="edm", sigma_min=0.002, sigma_max=80.0, rho=7.0)
    assert grid == pytest.approx(expected, rel=1e-12)
    assert edm().grid(steps, kind="edm", sigma_min=0.002, sigma_max=80.0, rho=6.9) != pytest.approx(expected, rel=1e-6)


@given(kind=st.sampled_from(["edm", "log", "native"]), steps=st.integers(2, 200), rho=st.floats(0.1, 100))
def test_every_grid_falls_to_zero_through_exact_ends(kind: str, steps: int, rho: float) -> None:
    grid = edm().grid(steps, kind=kind, sigma_min=0.002, sigma_max=80.0, rho=rho)
    assert all(isinstance(level, float) for level in grid)
    assert (len(grid), grid[0], grid[-2], grid[-1]) == (steps + 1, 80.0, 0.002, 0.0)
    assert all(above > below for above, below in pairwise(grid))


def test_the_native_grid_is_even_in_sigma() -> None:
    grid = edm().grid(5, kind="native", sigma_min=1.0, sigma_max=9.0, rho=7.0)
    assert grid == pytest.approx([9.0, 7.0, 5.0, 3.0, 1.0, 0.0], rel=1e-14)


@pytest.mark.parametrize(
    "settings",
    [
        {"sigma_data": 0},
        {"sigma_data": "guessed"},
        {"p_std": 0.0},
        {"sigma_min": 80.0},
        {"sigma_min": 0.0},
        {"sigma": 1},
    ],
)
def test_invalid_settings_are_rejected(settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        EDMParams(**settings)


def test_a_measured_sigma_data_must_be_resolved_to_a_number() -> None:
    with pytest.raises(ValueError, match="replace it with a number"):
        EDM(EDMParams(sigma_data="measured"))
    assert edm(sigma_data=1).sigma_data == 1
