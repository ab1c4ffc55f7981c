"""Compare the FLOPs by formula, on which equal budgets and costs depend, with an operator counter: steps and samples.

Each component's own formula is compared in the tests of its plugin; here second passes, teacher, decoder, heads,
dropped tokens and the backward pass come together, for every system that ships.
"""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from sddit.generation import balanced, generate
from sddit.recipes.costs import plan
from sddit.recipes.resolve import resolve
from sddit.training import step_metrics
from sddit.training.build import build_session
from sddit.training.loop import take_step, training_mode

BATCH = 4
SHORT = (f"train.batch={BATCH}", "train.steps=200", "attention.name=eager")
SYSTEMS = {
    "digits/dit": (),
    "digits/dit-flow": (),
    "digits/dit-ddpm": (),
    "digits/sd-dit-c0": (),
    "digits/sd-dit-c1": (),
    "digits/sd-dit-c2": (),
    "quickstart": (),
    "digits/maskdit": ("pair_sampler.mask_ratio=0.5",),
    "digits/layersync": (),
    "digits/sra": (),
    "digits/sra2": (),
    "digits/mdt": (),
    "digits/mdtv2": ("pair_sampler.mask_spread=0.0",),
    "digits/mdtv2-edm": ("pair_sampler.mask_spread=0.0",),
}
"""Overrides that keep the number of kept tokens constant where a recipe varies it; the plan has its mean."""


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_step_takes_the_planned_flops(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_metrics, "GRADIENT_RATIO_EVERY", 10**9)  # its backward passes are not part of training
    recipe = resolve(name, [*SHORT, *SYSTEMS[name]])
    session = build_session(recipe, torch.device("cpu"))
    session.step = 1
    with FlopCounterMode(display=False) as counter, training_mode(session):
        take_step(session)
    planned = plan(recipe)
    assert planned.flops_per_step == pytest.approx(counter.get_total_flops(), rel=0.01)
    for missed in planned.passes if len(planned.passes) > 1 else ():  # the counter would notice
        assert missed.backbone_flops is not None
        rest = planned.flops_per_step - BATCH * missed.backbone_flops
        assert rest != pytest.approx(counter.get_total_flops(), rel=0.05)


def test_heads_are_a_noticeable_part() -> None:
    parts = plan(resolve("quickstart", SHORT)).passes
    heads = sum(part.heads_flops or 0 for part in parts)
    assert heads > 0.05 * sum(part.backbone_flops or 0 for part in parts)


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("digits/dit", ()),
        ("digits/dit-ddpm", ("sampler.steps=5",)),
        ("digits/mdtv2", ("sampler.steps=5",)),
        ("quickstart", ("guidance.name=cfg", "guidance.scale=1.5")),
    ],
)
def test_an_image_takes_the_planned_flops(name: str, overrides: tuple[str, ...]) -> None:
    recipe = resolve(name, [*SHORT, *overrides])
    session = build_session(recipe, torch.device("cpu"))
    request = balanced(recipe.shapes.num_classes, 3, 0)
    weights = session.weights(recipe.evaluate.weights)
    with FlopCounterMode(display=False) as counter:
        generate(weights, session.schedule, recipe, request)
    found = plan(recipe).sampling_flops_per_image
    assert found == pytest.approx(counter.get_total_flops() / 3, rel=0.01)
