"""Test auxiliary heads: settings, initial values, cost, and what reads, trains, averages and exports them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from sddit.errors import SdditError
from sddit.exchange.conversion import convert_to_layout, without_heads
from sddit.interfaces import Shapes
from sddit.recipes.costs import plan
from sddit.recipes.resolve import resolve
from sddit.testing.kit import check
from sddit.training.build import build_session
from sddit.training.loop import take_step, training_mode
from sddit_dit.backbone import DiT
from sddit_dit.params import DiTParams

Make = Callable[..., DiT]

DECODER = {"depth": 2, "width": 12, "heads": 3}
TINY = ["backbone.width=16", "backbone.heads=2", "train.batch=8", "train.steps=20", "optimizer.warmup=0"]


@pytest.mark.parametrize(
    ("heads", "reason"),
    [
        ({"inner": 7}, "block from 1 to 4"),
        ({"inner": "middle"}, "block from 1 to 4"),
        ({"inner": 4}, "after the last block it is the output itself"),
        ({"inner": 1.0}, "after the last block it is the output itself"),
        ({"In-ner": 2}, "pattern"),
    ],
)
def test_a_head_that_cannot_be_built_is_refused(heads: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        DiTParams(depth=4, width=16, heads=2, aux_heads=heads)


def test_the_depth_of_a_head_is_a_fraction_a_number_or_a_name() -> None:
    sizes: dict[str, Any] = {"depth": 12, "width": 16, "heads": 2, "decoder": DECODER}
    params = DiTParams(**sizes, aux_heads={"a": 0.33, "b": 4, "c": "encoder", "d": 13})
    assert params.head_blocks == {"a": 5, "b": 4, "c": 12, "d": 13}
    assert params.head_tokens == {"a": "visible", "b": "visible", "c": "visible", "d": "all"}
    plain = DiTParams(depth=12, width=16, heads=2, aux_heads={"type": 0.33})
    assert (plain.head_blocks, plain.head_tokens) == ({"type": 4}, {"type": "all"})


def test_a_head_starts_at_zero_and_changes_no_other_initial_weight() -> None:
    with_head = build_session(resolve("digits/internal-guidance", TINY), torch.device("cpu")).student.backbone
    plain = build_session(resolve("digits/dit", TINY), torch.device("cpu")).student.backbone
    weights = with_head.state_dict()
    heads = {name: weights.pop(name) for name in list(weights) if name.startswith("aux_heads.")}
    assert len(heads) == 4 and not any(tensor.any() for tensor in heads.values())
    assert weights.keys() == plain.state_dict().keys()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in plain.state_dict().items())


@pytest.mark.parametrize("num_kept", [16, 9])
def test_heads_count_in_parameters_and_flops(make: Make, num_kept: int) -> None:
    settings: dict[str, Any] = {"depth": 2, "cls_token": True, "decoder": DECODER}
    model = make(**settings, aux_heads={"a": 1, "b": 3}, outputs=2)
    visible = None if num_kept == 16 else torch.arange(num_kept).expand(2, -1)
    x, zeros = torch.randn(2, 3, 8, 8).double(), torch.zeros(2, dtype=torch.int64)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        _, heads, _ = model(x, torch.zeros(2).double(), zeros, visible=visible)
    assert {name: head.shape for name, head in heads.items()} == {"a": x.shape, "b": x.shape}
    cost = model.params.cost(Shapes((3, 8, 8), 5, 2), num_kept=num_kept)
    plain = make(**settings, outputs=2).params.cost(Shapes((3, 8, 8), 5, 2), num_kept=num_kept)
    assert cost.flops == pytest.approx(counter.get_total_flops() / 2, rel=0.002)
    assert plain.flops != pytest.approx(counter.get_total_flops() / 2, rel=0.002)
    assert cost.parameters == sum(p.numel() for p in model.parameters()) > plain.parameters


def test_a_cut_network_has_no_head(make: Make) -> None:
    model = make(depth=4, aux_heads={"inner": 2})
    model.truncate((3,))
    assert not any(model.params.is_of_head(name) for name in model.state_dict())
    x, zeros = torch.randn(2, 3, 8, 8).double(), torch.zeros(2, dtype=torch.int64)
    raw, heads, taps = model(x, torch.zeros(2).double(), zeros, taps=(3,), output=False)
    assert (raw, heads, list(taps)) == (None, {}, [3])


def test_the_kit_accepts_heads() -> None:
    check("dit/dit", "backbones", depth=2, width=16, heads=2, aux_heads={"inner": 1})
    check("dit/dit", "backbones", depth=2, width=16, heads=2, decoder=DECODER, aux_heads={"a": 1, "b": 3})
    check("edm/denoising", "losses", head="inner")
    check("edm/denoising", "losses", target_head="inner")
    check("heun/internal", "guidances", cfg={"scale": 1.5})
    check("heun/autoguidance", "guidances")


def test_training_moves_the_head_its_average_and_the_shared_blocks() -> None:
    session = build_session(resolve("digits/internal-guidance", TINY), torch.device("cpu"))
    with training_mode(session):
        for _ in range(4):
            take_step(session)
    for module in (session.student.backbone, session.emas["main"].module):
        assert all(tensor.any() for name, tensor in module.state_dict().items() if name.startswith("aux_heads."))


def test_at_weight_0_for_the_first_steps_the_network_is_that_without_the_head() -> None:
    """Null control: the head alone differs, until its loss begins."""
    late = "loss.inner.weight={start=0.0,end=0.5,shape='step',until=6}"
    overrides = [*TINY, "optimizer.clip=100.0"]
    sessions = [
        build_session(resolve(name, [*overrides, *more]), torch.device("cpu"))
        for name, more in (("digits/dit", []), ("digits/internal-guidance", [late]))
    ]

    def same(*, steps: int) -> bool:
        for session in sessions:
            with training_mode(session):
                for _ in range(steps):
                    take_step(session)
        plain, other = (session.student.backbone.state_dict() for session in sessions)
        return all(torch.equal(tensor, other[name]) for name, tensor in plain.items())

    assert same(steps=6)
    assert not same(steps=3)


LOSS = ["loss.inner.name=denoising", "loss.inner.head=inner"]
INNER = ["backbone.aux_heads.inner=1", *LOSS]


@pytest.mark.parametrize(
    ("recipe", "overrides", "code", "says"),
    [
        ("digits/dit", LOSS, "SD-R113", "no auxiliary head 'inner', which loss.inner reads"),
        ("digits/dit", ["guidance.name=internal"], "SD-R113", "no auxiliary head 'inner', which guidance reads"),
        ("digits/internal-guidance", ["guidance.head=innner"], "SD-R113", "'innner', which guidance reads"),
        ("digits/sd-dit-c1", INNER, "SD-R108", "predicts no hidden tokens"),
        ("digits/dit", ["backbone.aux_heads.inner=6"], "SD-R108", "is the output itself"),
        ("digits/internal-guidance", ["loss.inner.target_head=inner"], "SD-R108", "the head that is trained"),
    ],
)
def test_a_recipe_whose_heads_do_not_fit_is_refused(recipe: str, overrides: list[str], code: str, says: str) -> None:
    with pytest.raises(SdditError) as caught:
        resolve(recipe, overrides)
    assert [problem.code for problem in caught.value.problems] == [code]
    assert says in caught.value.problems[0].what


@pytest.mark.parametrize("overrides", [[*INNER, "loss.inner.tokens=visible"], ["backbone.aux_heads.inner=5", *LOSS]])
def test_a_head_of_a_masked_view_reads_visible_tokens_or_is_in_the_decoder(overrides: list[str]) -> None:
    session = build_session(resolve("digits/sd-dit-c1", [*TINY, *overrides]), torch.device("cpu"))
    with training_mode(session):
        assert take_step(session).taken


def test_a_head_that_no_loss_trains_is_warned_of() -> None:
    untrained = resolve("digits/dit", ["backbone.aux_heads.inner=2"])
    assert any("aux_heads.inner is not trained" in warning for warning in untrained.warnings)
    assert resolve("digits/internal-guidance").warnings == ()


@pytest.mark.parametrize(("block", "warned"), [(2, False), (5, True)])
def test_a_head_within_the_encoder_trains_it_without_the_decoder_s_gradient(block: int, warned: bool) -> None:
    none = ["backbone.decoder.encoder_gradient=none", "loss.inner.tokens=visible"]
    recipe = resolve("digits/sd-dit-c1", [*none, *LOSS, f"backbone.aux_heads.inner={block}"])
    assert any("not trained" in text for text in recipe.warnings) == warned


def test_a_published_layout_drops_the_head_and_nothing_else() -> None:
    overrides = [*TINY, "noise_schedule.name=ddpm", "noise_schedule.learned_variance=false"]
    overrides += ["sampler.name=ddim", "sampler.grid=stride"]
    recipe = resolve("digits/internal-guidance", overrides)
    state = build_session(recipe, torch.device("cpu")).student.backbone.state_dict()
    _, theirs = convert_to_layout(recipe, "dit", state)
    plain = resolve("digits/dit", overrides)
    _, expected = convert_to_layout(plain, "dit", without_heads(state, recipe))
    assert theirs.keys() == expected.keys()
    assert all(torch.equal(theirs[name], expected[name]) for name in theirs)


def test_the_plan_counts_the_head_in_training_and_sampling() -> None:
    plain, guided = (plan(resolve(name)) for name in ("digits/dit", "digits/internal-guidance"))
    assert plain.flops_per_step is not None and guided.flops_per_step is not None
    assert 1 < guided.flops_per_step / plain.flops_per_step < 1.02
    assert guided.backbone_parameters is not None and plain.backbone_parameters is not None
    assert guided.backbone_parameters - plain.backbone_parameters == 64 * 128 + 128 + 64 * 4 + 4
    with_cfg = plan(resolve("digits/internal-guidance", ["guidance.cfg.scale=1.35"]))
    assert with_cfg.sampling_flops_per_image == 2 * (guided.sampling_flops_per_image or 0)
