"""Compare the cost of a recipe with a calculation by hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from statistics import fmean

import pytest

from sddit.diffusion.masking import keep_count
from sddit.interfaces import ViewSpec
from sddit.recipes.costs import CHECKPOINTING, plan
from sddit.recipes.recipe import Recipe
from sddit.value_schedules import Ramp, value_at

Resolve = Callable[..., Recipe]

PAIR = ["pair_sampler.teacher=true", "pair_sampler.mask_ratio=0.5", "loss.agree.name=toy_agreement"]


def backbone_flops(recipe: Recipe, num_kept: int, *, output: bool) -> float:
    cost = recipe.backbone.params.cost(recipe.shapes, num_kept=num_kept, taps=("encoder",), output=output)
    assert cost is not None
    return cost.flops


def test_a_plain_recipe_costs_three_forwards(resolved: Resolve) -> None:
    recipe = resolved()
    made = plan(recipe)
    forward = backbone_flops(recipe, 4, output=True)
    assert (made.tokens, made.batch, made.steps, made.run_id) == (4, 8, 10, recipe.run_id)
    assert made.flops_per_image == 3 * forward
    assert made.flops_per_step == 3 * forward * 8
    assert made.training_flops == 3 * forward * 8 * 10
    assert made.sampling_flops_per_image == forward * 4
    assert (made.heads_parameters, made.teacher_parameters) == ({"denoise": 0}, 0)
    assert (made.sampled, made.sampling_flops) == (1000, forward * 4 * 1000)  # kept, with scores or without


def test_a_teacher_is_cut_seen_once_and_has_its_heads(resolved: Resolve, base: str) -> None:
    recipe = resolved(
        base, *PAIR, "sampler.steps=3", "guidance.name=guided", "evaluate.features=['toy']", "evaluate.samples=5"
    )
    made = plan(recipe)
    student, teacher = made.passes
    assert [(p.view, p.network, p.kept) for p in made.passes] == [("student", "student", 2), ("teacher", "teacher", 4)]
    agreement = recipe.losses["agree"].params
    heads = {kept: agreement.cost(recipe.backbone.params, recipe.shapes, ViewSpec("any"), kept) for kept in (2, 4)}
    assert heads[2] and heads[4]
    assert student.backbone_flops == 3 * backbone_flops(recipe, 2, output=True)
    assert teacher.backbone_flops == backbone_flops(recipe, 4, output=False)
    assert (student.heads_flops, teacher.heads_flops) == (3 * heads[2].flops, heads[4].flops)
    cut = recipe.backbone.params.cost(recipe.shapes, num_kept=4, taps=("encoder",), output=False)
    assert cut
    assert made.heads_parameters == {"denoise": 0, "agree": heads[2].parameters}  # two views, one head
    assert made.teacher_parameters == cut.parameters + heads[4].parameters
    assert made.sampling_flops == backbone_flops(recipe, 4, output=True) * 3 * 2 * 5


def test_a_term_without_weight_costs_nothing(resolved: Resolve, base: str) -> None:
    made = plan(resolved(base, *PAIR, "loss.agree.weight=0"))
    assert [p.view for p in made.passes] == ["student"]
    assert made.teacher_parameters == 0


def test_a_term_costs_until_it_ends(resolved: Resolve, base: str) -> None:
    whole, half = plan(resolved(base, *PAIR)), plan(resolved(base, *PAIR, "loss.agree.until=0.5"))
    assert half.passes[1].backbone_flops == pytest.approx(whole.passes[1].backbone_flops / 2)
    assert half.passes[0].backbone_flops == whole.passes[0].backbone_flops
    later = plan(resolved(base, *PAIR, "loss.agree.weight={start=0,end=1,shape='step',until=0.5}"))
    assert later.passes[1].backbone_flops == pytest.approx(whole.passes[1].backbone_flops / 2)


def test_a_mask_schedule_is_averaged_over_the_run(resolved: Resolve, base: str) -> None:
    recipe = resolved(base, "pair_sampler.mask_ratio={start=0.75,end=0.0}", "train.steps=40", "dataset.size=32")
    ramp = Ramp(start=0.75, end=0.0)
    kept = [keep_count(64, value_at(ramp, step, 40)) for step in range(40)]
    made = plan(recipe)
    assert made.passes[0].kept == pytest.approx(fmean(kept))
    expected = fmean(3 * backbone_flops(recipe, k, output=True) for k in kept)
    assert made.passes[0].backbone_flops == pytest.approx(expected)


@pytest.mark.parametrize(("precision", "weight", "number"), [("fp32", 4, 4), ("bf16", 4, 2), ("fp64", 8, 8)])
def test_memory_by_hand(resolved: Resolve, base: str, precision: str, weight: int, number: int) -> None:
    overrides = [*PAIR, f"train.precision={precision}", "train.micro_batch=2", "ema.a.decay=0.5", "ema.b.decay=0.6"]
    recipe = resolved(base, *overrides)
    made = plan(recipe)
    memory = made.memory
    assert made.backbone_parameters is not None and made.teacher_parameters is not None
    trained = made.backbone_parameters + sum(count or 0 for count in made.heads_parameters.values())
    body = recipe.backbone.params.cost(recipe.shapes, num_kept=2)
    head = recipe.losses["agree"].params.cost(recipe.backbone.params, recipe.shapes, ViewSpec("any"), 2)
    assert body and head
    assert memory.weights == memory.gradients == trained * weight
    assert memory.optimizer == trained * weight * 2  # Adam's two moments
    assert memory.averages == made.backbone_parameters * weight * 2
    assert memory.teacher == made.teacher_parameters * weight
    assert memory.activations == (body.activations + head.activations) * 2 * number
    assert memory.total == sum(getattr(memory, name) or 0 for name in memory.__slots__)


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_memory_of_one_of_several_processes(resolved: Resolve, base: str, processes: int) -> None:
    """Activations are shared in any case; the rest is shared by fsdp only, and ddp has gradients twice."""
    recipe = resolved(base, *PAIR, "train.batch=12", "ema.a.decay=0.5")
    shared = resolved(base, *PAIR, "train.batch=12", "ema.a.decay=0.5", "train.distributed=fsdp")
    alone = plan(recipe).memory
    ddp = plan(replace(recipe, processes=processes)).memory
    fsdp = plan(replace(shared, processes=processes)).memory
    assert alone.activations and ddp.activations == fsdp.activations == alone.activations // processes
    assert ddp.gradients == (alone.gradients or 0) * (2 if processes > 1 else 1)
    for name in ("weights", "optimizer", "averages", "teacher"):
        whole = getattr(alone, name)
        assert whole > 0
        assert getattr(ddp, name) == whole
        assert getattr(fsdp, name) == -(-whole // processes)
    assert fsdp.gradients == fsdp.weights
    assert plan(replace(shared, processes=processes)).processes == processes
    assert (ddp == fsdp == alone) == (processes == 1)


def test_memory_that_is_not_stated_stays_so(resolved: Resolve, base: str) -> None:
    unpriced = replace(resolved(base, "loss.extra.name=unpriced", "train.distributed=fsdp"), processes=2)
    assert (plan(unpriced).memory.gradients, plan(unpriced).memory.total) == (None, None)


def test_activations_are_those_of_the_largest_view(resolved: Resolve, base: str) -> None:
    falling = plan(resolved(base, "pair_sampler.mask_ratio={start=0.5,end=0.0}")).memory.activations
    assert falling == plan(resolved()).memory.activations
    assert falling != plan(resolved(base, "pair_sampler.mask_ratio=0.5")).memory.activations


def test_what_is_not_stated_is_named_and_not_guessed(resolved: Resolve, base: str) -> None:
    made = plan(resolved(base, "loss.extra.name=unpriced"))
    assert made.not_stated == ("loss.extra (extras/unpriced)",)
    assert (made.flops_per_image, made.training_flops, made.memory.total) == (None, None, None)
    assert made.heads_parameters == {"denoise": 0, "extra": None}
    assert made.backbone_parameters is not None
    bare = plan(resolved(base, "backbone.name=solid", "backbone.patch=4"))
    assert bare.not_stated == ("backbone (extras/solid)",)
    assert (bare.backbone_parameters, bare.sampling_flops_per_image, bare.memory.weights) == (None, None, None)


def test_a_plan_with_checkpointing_states_what_it_does_not_count(resolved: Resolve, base: str) -> None:
    assert plan(resolved()).notes == ()
    assert plan(resolved(base, "train.activation_checkpointing=true")).notes == (CHECKPOINTING,)


def test_a_plan_is_json(resolved: Resolve, base: str) -> None:
    made = plan(resolved(base, *PAIR))
    stated = json.loads(json.dumps(made.to_json(), allow_nan=False))
    assert stated["flops_per_step"] == made.flops_per_step
    assert stated["memory"]["total"] == made.memory.total
    assert [p["view"] for p in stated["passes"]] == ["student", "teacher"]


def test_the_course_of_a_run_that_changes_on_the_way(resolved: Resolve, base: str) -> None:
    """A step costs less while more is hidden; the mean of the course is the step of the average."""
    even = plan(resolved())
    assert even.course == (even.flops_per_step,)
    falling = plan(resolved(base, "pair_sampler.mask_ratio={start=0.5,end=0.0}"))
    assert falling.flops_per_step == pytest.approx(sum(falling.course) / len(falling.course))
    assert falling.course[0] < falling.flops_per_step < falling.course[-1]
    assert plan(resolved(base, "loss.extra.name=unpriced")).course == (None,)
