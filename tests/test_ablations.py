"""Arms made of the built-in plugins: pairs that share what they can, and FLOPs that are equal."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from sddit.ablations.planning.arms import Ablation, expand
from sddit.ablations.planning.budget import budget_of
from sddit.ablations.planning.plan import make_plan
from sddit.data.order import batch_ids
from sddit.diffusion.draws import KeyedDraws
from sddit.interfaces import Context
from sddit.recipes.merge import load
from sddit.recipes.recipe import Recipe
from sddit.training.build import build_session
from sddit.training.inputs import make_batch

ROOT = Path(__file__).parents[1]
ARMS = """
extends = "base/digits"

[pair_sampler]
name = "single"

[loss.denoise]
name = "denoising"

[ablation]
seeds = [0]
budget = "flops"

[ablation.arms.dit]

[ablation.arms.control]
backbone = { depth = 4, decoder = { depth = 2, width = 64, heads = 4 } }

[ablation.arms.sd_dit]
backbone = { depth = 4, decoder = { depth = 2, width = 64, heads = 4 } }
pair_sampler = { name = "pf_ode", mask_ratio = 0.1 }
loss.discrimination = { name = "discrimination", prototypes = 64, hidden = 32, bottleneck = 16, cls_source = "mean" }

[ablation.arms.maskdit]
backbone = { depth = 4, decoder = { depth = 2, width = 64, heads = 4 }, fill = "learned" }
pair_sampler = { name = "masked", mask_ratio = 0.5 }
loss.mae = { name = "reconstruction", weight = 0.1 }
"""


@pytest.fixture(scope="module")
def ablation(tmp_path_factory: pytest.TempPathFactory) -> Ablation:
    path = tmp_path_factory.mktemp("arms") / "arms.toml"
    path.write_text(ARMS, encoding="utf-8")
    return expand(load(path))


@pytest.fixture(scope="module")
def recipes(ablation: Ablation) -> dict[str, Recipe]:
    return {arm.label: arm.recipe for arm in make_plan(ablation, Path("runs")).arms}


def test_arms_of_other_losses_and_decoders_share_their_initial_weights(recipes: dict[str, Recipe]) -> None:
    weights = {
        label: dict(build_session(recipe, torch.device("cpu")).student.backbone.named_parameters())
        for label, recipe in recipes.items()
    }
    dit = weights.pop("dit")
    for other in weights.values():
        alike = {name for name in other.keys() & dit.keys() if other[name].shape == dit[name].shape}
        assert sum(name.startswith("blocks.") for name in alike) > 20
        assert all(torch.equal(other[name], dit[name]) for name in alike)
        assert other.keys() - dit.keys()  # the decoder
    control, sd_dit = weights["control"], weights["sd_dit"]
    assert control.keys() == sd_dit.keys()
    assert all(torch.equal(control[name], sd_dit[name]) for name in control)


def test_arms_of_other_pair_samplers_see_the_same(recipes: dict[str, Recipe]) -> None:
    seen = {}
    for label, recipe in recipes.items():
        session = build_session(recipe, torch.device("cpu"))
        ids, epochs = batch_ids(recipe.seed, 5, 16, len(session.dataset))
        draws = KeyedDraws(recipe.seed, 5, torch.as_tensor(ids), torch.as_tensor(epochs))
        batch = make_batch(session, ids, draws)
        ctx = Context(step=5, total_steps=9, schedule=session.schedule, draws=draws, num_classes=10)
        view = session.pair_sampler(batch, draws, session.schedule, ctx)["student"]
        seen[label] = torch.cat([view.x.flatten(), view.noise.flatten(), view.t, view.labels.float()])
    assert all(torch.equal(seen["dit"], other) for other in seen.values())


def test_flops_are_equal_to_half_a_step(ablation: Ablation) -> None:
    plan = make_plan(ablation, Path("runs"))
    amount = budget_of(ablation, {}).amount
    for arm in plan.arms:
        assert arm.cost.training_flops == pytest.approx(amount, abs=arm.cost.flops_per_step / 2)
    steps = {arm.label: arm.cost.steps for arm in plan.arms}
    assert steps["dit"] == 1400  # the recipe without changes
    assert steps["sd_dit"] < 1400 < steps["maskdit"]


def test_moments_of_a_method_move_with_its_length(ablation: Ablation) -> None:
    *_, longest = make_plan(ablation, Path("runs")).arms
    assert longest.recipe.optimizer.params.warmup == round(50 * longest.cost.steps / 1400) > 50


def test_the_example_of_the_docs_is_one(tmp_path: Path) -> None:
    """And without its grids and pairs it has the two arms that it names."""
    section = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8").partition("## Ablations")[2]
    example = re.search(r"```toml\n(.*?)```", section, re.DOTALL)
    assert example is not None
    path = tmp_path / "example.toml"
    path.write_text(example[1], encoding="utf-8")
    assert len(expand(load(path)).arms) == 2 * 2 * 2
    plain = expand(load(path, ["ablation.grid=false", "ablation.pairs=[]"]))
    assert [(arm.label, arm.baseline) for arm in plain.arms] == [("dit", "dit"), ("maskdit", "dit")]
