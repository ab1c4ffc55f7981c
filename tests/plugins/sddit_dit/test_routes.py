"""Test routes and the dense path in recipes: what they refuse, what they train, and how they resume and sample."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from sddit.errors import SdditError
from sddit.generation import balanced, generate, guidance_overrides
from sddit.recipes.costs import plan
from sddit.recipes.recipe import Recipe
from sddit.recipes.resolve import resolve
from sddit.training.build import build_session
from sddit.training.loop import take_step, training_mode
from sddit.training.session import Session

SMALL = ["train.batch=16", "train.steps=20", "optimizer.warmup=0", "backbone.width=16", "sampler.steps=2"]
PATH_DROP = "guidance.name=path_drop"


def recipe(name: str, *overrides: str) -> Recipe:
    return resolve(name, [*SMALL, *overrides])


def trained(chosen: Recipe, steps: int = 3) -> Session:
    session = build_session(chosen, torch.device("cpu"))
    with training_mode(session):
        for step in range(1, steps + 1):
            session.step = step
            take_step(session)
    return session


def weights(session: Session) -> dict[str, Tensor]:
    return dict(session.student.backbone.state_dict())


def equal(one: dict[str, Tensor], two: dict[str, Tensor]) -> bool:
    assert one.keys() == two.keys()
    return all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        ("digits/mdt", ["pair_sampler.path_drop=0.1"], "skips a sparse span, which backbone 'mdt' does not have"),
        ("digits/dit", [PATH_DROP], "skips a sparse span, which backbone 'dit' does not have"),
        ("digits/tread", [PATH_DROP], "needs a model trained with samples that skip its sparse span"),
        ("digits/sprint", [PATH_DROP, "dataset.label_drop=0.0"], "trained with label dropout"),
        ("digits/tread", ["backbone.route.to=6"], "at least one block between, and one after, of 6 blocks"),
        ("digits/sd-dit-c1", ["backbone.route.to=3"], "all tokens return at its first block"),
        ("digits/tread", ["backbone.route.fil=fused"], "fill"),
        ("digits/tread", ["pair_sampler.mask_shape=cell"], "cells"),
    ],
)
def test_contradictions_are_refused_with_their_keys(name: str, overrides: list[str], message: str) -> None:
    with pytest.raises(SdditError) as refused:
        recipe(name, *overrides)
    assert message in str(refused.value)


def test_with_nothing_hidden_training_is_that_of_a_plain_dit_bit_for_bit() -> None:
    plain = weights(trained(recipe("digits/dit")))
    assert equal(weights(trained(recipe("digits/tread", "pair_sampler.mask_ratio=0.0"))), plain)
    assert not equal(weights(trained(recipe("digits/tread"))), plain)


def test_a_route_from_the_first_block_trains_as_a_split_decoder_bit_for_bit() -> None:
    """The arrangement of SD-DiT's control arm C1, in a DiT of one width."""
    split = ["backbone.route=false", 'backbone.decoder={style="split", depth=2}']
    decoded = weights(trained(recipe("digits/tread", *split)))
    assert equal(weights(trained(recipe("digits/tread", "backbone.route.from=0"))), decoded)
    assert not equal(weights(trained(recipe("digits/tread"))), decoded)


def test_a_separate_decoder_takes_a_later_start_with_the_same_parameters() -> None:
    first, later = (trained(recipe("digits/sd-dit-c1", f"backbone.route.from={start}")) for start in (0, 2))
    assert equal(weights(first), weights(trained(recipe("digits/sd-dit-c1"))))
    assert not equal(weights(first), weights(later))


def test_a_route_without_hidden_tokens_is_idle_unless_it_fuses() -> None:
    nothing = "pair_sampler.mask_ratio=0.0"
    assert any(line.startswith("backbone.route") for line in recipe("digits/tread", nothing).idle)
    assert not any(line.startswith("backbone.route") for line in recipe("digits/tread").idle)
    fused = recipe("digits/tread", nothing, "backbone.route.fill=fused")
    assert not any(line.startswith("backbone.route") for line in fused.idle)


def test_dropped_paths_reach_the_network_and_change_its_training() -> None:
    sprint = weights(trained(recipe("digits/sprint")))
    assert not equal(weights(trained(recipe("digits/sprint", "pair_sampler.path_drop=0.0"))), sprint)


@pytest.mark.parametrize("micro", [4, 8])
def test_micro_batches_drop_the_same_paths(micro: int) -> None:
    keys = ["pair_sampler.path_drop=0.5"]
    whole = weights(trained(recipe("digits/sprint", *keys), steps=2))
    parts = weights(trained(recipe("digits/sprint", *keys, f"train.micro_batch={micro}"), steps=2))
    other = weights(trained(recipe("digits/sprint"), steps=2))
    apart = max(float((whole[name] - parts[name]).abs().max()) for name in whole)
    assert apart < 1e-4 < max(float((whole[name] - other[name]).abs().max()) for name in whole)


def test_path_drop_guidance_samples_and_costs_less_than_two_full_passes() -> None:
    session = trained(recipe("digits/sprint"))
    backbone = session.weights("student")
    images = {}
    for guidance in ("none", "path_drop", "cfg"):
        chosen = recipe("digits/sprint", f"guidance.name={guidance}")
        images[guidance] = generate(backbone, session.schedule, chosen, balanced(10, 2, 0))
    assert all(image.isfinite().all() for image in images.values())
    assert not torch.equal(images["none"], images["path_drop"])
    costs = {
        name: plan(recipe("digits/sprint", f"guidance.name={name}")).sampling_flops_per_image
        for name in ("none", "path_drop", "cfg")
    }
    none, dropped, cfg = (costs[name] or 0 for name in ("none", "path_drop", "cfg"))
    assert none < dropped < cfg == 2 * none
    assert dropped < 1.6 * none  # four of six blocks are skipped


def test_a_scale_alone_still_names_the_rule_that_compares_labels() -> None:
    assert guidance_overrides(recipe("digits/tread"), 2.0) == ["guidance.name=heun/cfg", "guidance.scale=2.0"]
    assert guidance_overrides(recipe("digits/sprint", PATH_DROP), 2.0) == ["guidance.scale=2.0"]


def test_a_plain_dit_takes_no_dense_path() -> None:
    session = trained(recipe("digits/dit"), steps=1)
    x, level, labels = torch.zeros(1, 1, 8, 8), torch.zeros(1), torch.zeros(1, dtype=torch.int64)
    with pytest.raises(ValueError, match="without a decoder or a route cannot hide tokens"):
        session.student.backbone(x, level, labels, dense_path=True)
    routed = build_session(recipe("digits/sprint"), torch.device("cpu")).student.backbone
    with pytest.raises(ValueError, match="no tokens can be read there"):
        routed(x, level, labels, taps=("encoder",), dense_path=True)


def test_the_dense_path_has_only_the_heads_outside_of_the_span() -> None:
    heads = ["backbone.aux_heads={first=1, inner=3, last=5}", "backbone.route.to=4"]
    with_heads = recipe("digits/sprint", *heads)
    backbone = build_session(with_heads, torch.device("cpu")).student.backbone
    x, level, labels = torch.zeros(1, 1, 8, 8), torch.zeros(1), torch.zeros(1, dtype=torch.int64)
    assert set(backbone(x, level, labels)[1]) == {"first", "inner", "last"}
    with FlopCounterMode(display=False) as counter:
        assert set(backbone(x, level, labels, dense_path=True)[1]) == {"first", "last"}
    params = with_heads.backbone.params
    assert params.head_tokens == {"first": "all", "inner": "visible", "last": "all"}
    assert params.cost(with_heads.shapes, num_kept=0).flops == pytest.approx(counter.get_total_flops(), rel=0.01)
