"""Test DDPM in a recipe: a run from training to samples, rules between slots, settings without effect."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import sddit
from sddit.errors import SdditError
from sddit.progress import Progress
from sddit.recipes.costs import plan
from sddit.recipes.recipe import Recipe
from sddit.recipes.resolve import resolve
from sddit.runs.pipeline import run
from sddit.storage.metrics_log import read_metrics

RECIPE = """
[backbone]
name = "dit"
depth = 2
width = 16
heads = 2
patch = 4
[noise_schedule]
name = "ddpm"
[pair_sampler]
name = "single"
[loss.denoise]
name = "hybrid"
[attention]
name = "eager"
[dataset]
name = "digits"
[sampler]
name = "ancestral"
steps = 5
[guidance]
name = "cfg"
scale = 2.0
[optimizer]
name = "adamw"
lr = 1e-2
[ema.main]
decay = 0.9
[train]
steps = 2
batch = 16
log_every = 1
[evaluate]
samples = 10
previews = 1
per_class = 1
"""


def recipe(folder: Path, *overrides: str) -> Recipe:
    path = folder / "tiny.toml"
    path.write_text(RECIPE, encoding="utf-8")
    return resolve(path, overrides)


@pytest.mark.parametrize(
    "overrides", [[], ["train.precision=bf16", "sampler.name=ddim", "sampler.steps=4", "sampler.clip=1.0"]]
)
def test_a_recipe_trains_and_samples(tmp_path: Path, overrides: list[str]) -> None:
    chosen = recipe(tmp_path, *overrides)
    assert (chosen.idle, chosen.warnings) == ((), ())
    assert plan(chosen).not_stated == ()
    result = run(chosen, out=tmp_path, device="cpu", progress=Progress())
    rows = read_metrics(result.folder / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2]
    assert all(row["denoise/mse"] > 0 and row["denoise/vb"] > 0 for row in rows)
    model = sddit.load(result.folder)
    assert model.shapes.outputs == 2
    assert sddit.sample(model, classes=[3], per_class=2).shape == (2, 3, 8, 8)
    x = torch.randn(2, 1, 8, 8)
    assert model.raw(x, torch.tensor([0, 999]), torch.tensor([1, 10])).shape == (2, 2, 8, 8)


def test_planning_imports_no_torch(tmp_path: Path) -> None:
    recipe(tmp_path)
    code = f"from sddit.recipes.resolve import resolve; resolve({str(tmp_path / 'tiny.toml')!r})"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys\nprint('torch' in sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["False"]


@pytest.mark.parametrize(
    ("overrides", "code", "says"),
    [
        (["noise_schedule.name=edm", "sampler.name=heun"], "SD-R108", "needs the chain of a DDPM schedule"),
        (["noise_schedule.learned_variance=false", "sampler.name=ddim"], "SD-R108", "trains a variance"),
        (["noise_schedule.learned_variance=false", "loss.denoise.vb_weight=0"], "SD-R108", "needs a learned variance"),
        (["sampler.steps=1001"], "SD-T908", "at most 1000"),
        (["noise_schedule.respacing=ddim4"], "SD-T908", "at most 4"),
        (["sampler.grid=stride", "sampler.steps=37"], "SD-T908", "36 or 38"),
        (["sampler.sigma_max=160.0"], "SD-T908", "levels within"),
        (["sampler.grid=even"], "SD-R108", "no grid 'even'"),
        (["sampler.sigma_min=3.0", "sampler.sigma_max=2.0"], "SD-T902", "no noise to remove"),
    ],
)
def test_unsupported_recipes_are_rejected_before_training(
    tmp_path: Path, overrides: list[str], code: str, says: str
) -> None:
    with pytest.raises(SdditError, match=says) as refused:
        recipe(tmp_path, *overrides)
    assert [problem.code for problem in refused.value.problems] == [code]


def test_valid_recipes_close_to_rejected_ones_work(tmp_path: Path) -> None:
    for overrides in (
        ["noise_schedule.learned_variance=false", "loss.denoise.vb_weight=0", "sampler.name=ddim"],
        ["sampler.grid=stride", "sampler.steps=38"],
        ["sampler.sigma_max=157.0", "sampler.sigma_min=0.02"],
        ["sampler.name=heun", "sampler.steps=18"],
        ["noise_schedule.respacing=100,50", "sampler.steps=150"],
    ):
        assert recipe(tmp_path, *overrides).noise_schedule.component.name == "ddpm"


def test_settings_without_effect_are_reported(tmp_path: Path) -> None:
    gamma, bound = "loss.denoise.snr_gamma=4.0", "loss.denoise.vb_trains=all"
    assert recipe(tmp_path, gamma).idle == ("loss.denoise.snr_gamma",)
    assert recipe(tmp_path, gamma, "loss.denoise.weighting=min_snr").idle == ()
    assert recipe(tmp_path, bound).idle == ()
    assert recipe(tmp_path, bound, "loss.denoise.vb_weight=0").idle == ("loss.denoise.vb_trains",)
    without = ["loss.denoise.mse_weight=0", bound, "loss.denoise.weighting=min_snr", gamma]
    assert set(recipe(tmp_path, *without).idle) == {"loss.denoise.weighting", "loss.denoise.snr_gamma"}
    assert recipe(tmp_path, "loss.denoise.over_views=sum").idle == ("loss.denoise.over_views",)
    cosine = recipe(tmp_path, "noise_schedule.betas=cosine", "noise_schedule.beta_max=0.03")
    assert cosine.idle == ("noise_schedule.beta_max",)
