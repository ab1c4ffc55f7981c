"""Test samplers and guidance in a recipe: settings without effect, and grids without noise to remove."""

from __future__ import annotations

from pathlib import Path

import pytest

from sddit.errors import SdditError
from sddit.recipes.recipe import Recipe
from sddit.recipes.resolve import resolve

CHURN = ["sampler.churn_min=0.1", "sampler.churn_max=1.0", "sampler.churn_noise=1.1"]
GUIDED = ["guidance.name=cfg", "guidance.interval=[0.1, 2.0]", "guidance.channels=1"]


def recipe(folder: Path, *overrides: str) -> Recipe:
    path = folder / "tiny.toml"
    path.write_text('extends = "digits/dit"\n', encoding="utf-8")
    return resolve(path, overrides)


@pytest.mark.parametrize("sampler", ["heun", "euler"])
def test_the_settings_of_churn_are_idle_without_it(tmp_path: Path, sampler: str) -> None:
    name = f"sampler.name={sampler}"
    idle = {"sampler.churn_min", "sampler.churn_max", "sampler.churn_noise"}
    assert idle <= set(recipe(tmp_path, name, *CHURN).idle)
    assert not idle & set(recipe(tmp_path, name, *CHURN, "sampler.churn=10").idle)


def test_the_settings_of_guidance_are_idle_at_scale_1(tmp_path: Path) -> None:
    idle = {"guidance.interval", "guidance.channels", "guidance.shape", "guidance.power"}
    shaped = [*GUIDED, "guidance.shape=power_cosine", "guidance.power=0.01"]
    assert set(recipe(tmp_path, *shaped, "guidance.scale=1").idle) == idle
    assert not idle & set(recipe(tmp_path, *shaped, "guidance.scale=2").idle)


def test_the_power_is_idle_without_a_shape_that_has_one(tmp_path: Path) -> None:
    assert set(recipe(tmp_path, *GUIDED, "guidance.power=0.01").idle) == {"guidance.power"}


def test_coordinates_are_idle_where_the_time_is_the_level(tmp_path: Path) -> None:
    native = ["sampler.name=heun", "sampler.coordinates=native"]
    assert "sampler.coordinates" in recipe(tmp_path, *native).idle
    assert recipe(tmp_path, *native, "noise_schedule.name=flow").idle == ()


def test_a_grid_without_noise_to_remove_is_rejected(tmp_path: Path) -> None:
    recipe(tmp_path, "sampler.sigma_min=79.0")
    for override, key in (
        ("sampler.sigma_min=80.0", "sampler.sigma_min"),
        ("sampler.sigma_max=0.002", "sampler.sigma_max"),
    ):
        with pytest.raises(SdditError, match="no noise to remove") as refused:
            recipe(tmp_path, override)
        assert [problem.code for problem in refused.value.problems] == ["SD-T902"]
        assert refused.value.problems[0].where.endswith(f"({key})")
