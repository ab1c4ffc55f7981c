"""Equal images, equal FLOPs, equal time: to half a step, with schedules that belong to the length."""

from __future__ import annotations

from pathlib import Path

import pytest

from sddit.ablations.planning.budget import budget_of, recipe_at_budget, unmeasured
from sddit.ablations.planning.plan import make_plan
from sddit.errors import SdditError
from sddit.recipes.costs import plan
from sddit.recipes.resolve import resolve

LONG = "train.steps=500"


def lengths(found, pace=None):
    """Steps by arm."""
    budget = budget_of(found, pace or {})
    return {arm.label: recipe_at_budget(budget, arm).train.steps for arm in found.arms}


def test_equal_images_are_equal_steps_at_one_batch(ablation):
    found = ablation(
        """
        [ablation.arms.base]
        [ablation.arms.small]
        train.batch = 4
        [ablation.arms.odd]
        train.batch = 3
        """,
        LONG,
    )
    assert lengths(found) == {"base": 500, "small": 1000, "odd": 1333}  # 4,000 images


FLOPS = """
    [ablation]
    budget = "flops"
    [ablation.arms.base]
    [ablation.arms.plain]
    loss.agree = false
    pair_sampler.teacher = false
    [ablation.arms.masks]
    pair_sampler.mask_ratio = { start = 0.0, end = 0.75, until = 100 }
    [ablation.arms.fading]
    loss.agree.weight = { start = 1.0, end = 0.0, until = 0.3 }
    [ablation.grid]
    train.batch = [8, 5]
"""


def test_equal_flops_to_half_a_step(ablation):
    found = ablation(FLOPS, LONG)
    budget = budget_of(found, {})
    costs = {arm.label: plan(recipe_at_budget(budget, arm)) for arm in found.arms}
    for cost in costs.values():
        assert cost.training_flops == pytest.approx(budget.amount, abs=cost.flops_per_step / 2)
    assert len({cost.steps for cost in costs.values()}) > 4  # of their own lengths
    assert budget.amount == plan(found.base).training_flops


def test_other_lengths_would_not_be_equal(ablation):
    """The negative control: at equal images the FLOPs differ by far more than half a step."""
    found = ablation(FLOPS.replace('"flops"', '"images"'), LONG)
    budget = budget_of(found, {})
    costs = [plan(recipe_at_budget(budget, arm)) for arm in found.arms]
    assert any(abs(cost.training_flops - costs[0].training_flops) > 10 * cost.flops_per_step for cost in costs)


MOMENTS = """
    [ablation]
    budget = "images"
    [ablation.arms.half]
    train.batch = 16
    optimizer.warmup = 50
    optimizer.lr = { start = 1e-3, end = 0.0, from = 100, until = 450 }
    loss.agree.until = 250
    teacher.momentum = { start = 0.9, end = 1.0, shape = "cosine", until = 0.5 }
"""


def test_what_counts_steps_moves_with_the_length(ablation):
    found = ablation(MOMENTS, LONG)
    (half,) = (recipe_at_budget(budget_of(found, {}), arm) for arm in found.arms)
    assert half.train.steps == 250
    assert half.optimizer.params.warmup == 25
    assert (half.optimizer.params.lr.from_, half.optimizer.params.lr.until) == (50, 225)
    assert half.losses["agree"].params.until == 125
    assert half.teacher.momentum.until == 0.5  # a fraction scales with the length


def test_an_arm_at_its_own_length_is_as_a_run_alone(ablation, write):
    found = ablation(MOMENTS.replace("train.batch = 16", ""), LONG)
    (same,) = (recipe_at_budget(budget_of(found, {}), arm) for arm in found.arms)
    assert same is found.arms[0].recipe


def test_a_moment_never_becomes_the_beginning(ablation):
    found = ablation(MOMENTS.replace("50\n", "1\n").replace("16", "24"), LONG)
    (short,) = (recipe_at_budget(budget_of(found, {}), arm) for arm in found.arms)
    assert short.optimizer.params.warmup == 1  # a third of a step


TIME = '[ablation]\nbudget = "time"\n[ablation.arms.base]\n[ablation.arms.slow]\nbackbone.depth = 4\n'


def test_equal_time_by_a_pace_that_was_measured(ablation):
    found = ablation(TIME, LONG)
    base, slow = (arm.recipe.run_id for arm in found.arms)
    assert set(unmeasured(found, {})) == {base, slow}  # the recipe without changes is the arm without changes
    assert unmeasured(found, {base: 0.1, slow: 0.3}) == {}
    assert lengths(found, {base: 0.1, slow: 0.3}) == {"base": 500, "slow": 167}


def test_a_plan_of_time_has_no_runs_before_it_is_measured(ablation, tmp_path):
    found = ablation(TIME, LONG)
    assert make_plan(found, tmp_path).runs == ()
    assert make_plan(found, tmp_path).budget.amount is None


def test_only_time_needs_to_be_measured(ablation):
    assert unmeasured(ablation(FLOPS, LONG), {}) == {}


def test_flops_that_a_component_does_not_state_are_refused(ablation, tmp_path, monkeypatch):
    from sddit.testing.toys.params import ToyAgreementParams

    monkeypatch.setattr(ToyAgreementParams, "cost", lambda *arguments: None)
    with pytest.raises(SdditError) as refused:
        make_plan(ablation(FLOPS, LONG), tmp_path)
    (problem,) = refused.value.problems
    assert problem.code == "SD-R151"
    assert problem.got == "not stated by loss.agree (toy/toy_agreement)"


def test_an_arm_that_cannot_be_of_its_length_is_named(ablation, tmp_path):
    """So short that a term ends before it begins."""
    found = ablation(
        """
        [ablation.arms.big]
        train.batch = 20
        loss.agree.until = 0.4
        """
    )
    with pytest.raises(SdditError, match="arm 'big' at 2 steps: loss 'agree' ends before the first step"):
        make_plan(found, tmp_path)


def test_the_length_is_seen_as_the_budgets(ablation):
    found = ablation(MOMENTS, LONG)
    half = recipe_at_budget(budget_of(found, {}), found.arms[0])
    assert half.origins["train.steps"] == half.origins["optimizer.warmup"] == "budget"


def test_what_a_plain_recipe_counts_in_steps_stays(toy_recipe: Path):
    """The negative control of the moves above: nothing is scaled outside of a budget."""
    assert resolve(toy_recipe, ["optimizer.warmup=3", "train.steps=400"]).optimizer.params.warmup == 3
