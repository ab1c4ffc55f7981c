"""Arms of one seed see the same batches, noise and noise levels, and shared modules begin with equal weights."""

from __future__ import annotations

import pytest
import torch

from sddit.ablations.planning.plan import make_plan
from sddit.data.order import batch_ids
from sddit.diffusion.draws import KeyedDraws
from sddit.interfaces import Context
from sddit.training.build import build_session
from sddit.training.inputs import make_batch

ARMS = """
[ablation]
seeds = [0, 1]
[ablation.arms.full]
[ablation.arms.plain]
loss.agree = false
pair_sampler.teacher = false
pair_sampler.mask_ratio = 0.0
[ablation.arms.deeper]
backbone.depth = 3
[ablation.arms.other_seed]
seed = 1
"""


@pytest.fixture
def recipes(ablation, tmp_path):
    """By arm and seed."""
    return {(run.arm, run.seed): run.recipe for run in make_plan(ablation(ARMS), tmp_path).runs}


def seen(recipe, step):
    """What an arm is shown at a step: ids, clean images, labels, noise and level of its student view."""
    session = build_session(recipe, torch.device("cpu"))
    ids, epochs = batch_ids(recipe.seed, step, recipe.train.batch, len(session.dataset))
    draws = KeyedDraws(recipe.seed, step, torch.as_tensor(ids), torch.as_tensor(epochs))
    batch = make_batch(session, ids, draws)
    ctx = Context(step=step, total_steps=4, schedule=session.schedule, draws=draws, num_classes=3)
    view = session.pair_sampler(batch, draws, session.schedule, ctx)["student"]
    return [torch.as_tensor(ids), view.x0, view.labels, view.noise, view.t, view.x]


@pytest.mark.parametrize("arm", ["plain", "deeper"])
@pytest.mark.parametrize("step", [0, 3])
def test_arms_of_one_seed_see_the_same(recipes, arm, step):
    for mine, other in zip(seen(recipes["full", 1], step), seen(recipes[arm, 1], step), strict=True):
        assert torch.equal(mine, other)


@pytest.mark.parametrize("other", [("plain", 0), ("other_seed", 1)])
def test_another_seed_sees_something_else(recipes, other):
    """The negative control: of all that is shown, only labels of so few classes might agree."""
    ids, x0, _, noise, t, x = (
        torch.equal(mine, theirs)
        for mine, theirs in zip(seen(recipes["full", 1], 0), seen(recipes[other], 0), strict=True)
    )
    assert not any((ids, x0, noise, t, x))


def weights(recipe):
    return dict(build_session(recipe, torch.device("cpu")).student.backbone.named_parameters())


@pytest.mark.parametrize("arm", ["plain", "deeper"])
def test_shared_modules_begin_with_equal_weights(recipes, arm):
    full, other = weights(recipes["full", 1]), weights(recipes[arm, 1])
    assert full.keys() <= other.keys()
    assert all(torch.equal(full[name], other[name]) for name in full)
    assert (len(other) > len(full)) == (arm == "deeper")


def test_another_seed_begins_elsewhere(recipes):
    """The negative control."""
    full, other = weights(recipes["full", 1]), weights(recipes["full", 0])
    assert not any(torch.equal(full[name], other[name]) for name in full if full[name].std() > 0)


def test_an_arm_whose_seed_is_shifted_runs_other_seeds(recipes):
    assert recipes["other_seed", 0].run_id == recipes["full", 1].run_id
