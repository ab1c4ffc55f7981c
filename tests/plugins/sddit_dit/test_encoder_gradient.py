"""Test the factor on the gradient that the encoder gets from the decoder: `decoder.encoder_gradient`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from sddit.exchange.conversion import convert_from_layout, convert_to_layout, model_mismatch
from sddit.recipes.differences import differences
from sddit.recipes.resolve import resolve
from sddit.training.networks import build_backbone
from sddit_dit.backbone import DiT
from sddit_dit.params import DiTParams

Make = Callable[..., DiT]

ENCODER = ("patch.", "cls_token", "blocks.0.", "blocks.1.")
CONDITION = ("timestep.", "label.")  # embeddings that steer the blocks of both
DECODER = {"depth": 1, "width": 12, "heads": 3}
VISIBLE = torch.tensor([[0, 3, 5, 6], [1, 2, 4, 15]])


def inputs() -> tuple[Tensor, Tensor, Tensor]:
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return x, torch.tensor([-1.0, 0.5]).double(), torch.tensor([0, 3])


def gradients(model: DiT, *, output: float = 1.0, tap: float = 0.0) -> dict[str, Tensor]:
    """Return the gradient of a loss of the output of a masked view and one of the encoder's tokens, with weights."""
    raw, _, taps = model(*inputs(), taps=("encoder",), visible=VISIBLE)
    assert raw is not None
    loss = output * raw.square().sum() + tap * taps["encoder"].patch.pow(3).sum()
    torch.autograd.backward(loss)
    return {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in model.named_parameters()}


@pytest.mark.parametrize("fill", ["input", "learned"])
@pytest.mark.parametrize(("setting", "factor"), [("none", 0.0), (0.25, 0.25), (4.0, 4.0)])
def test_the_gradient_from_the_decoder_is_scaled_exactly(make: Make, fill: str, setting: Any, factor: float) -> None:
    """A power of two scales without rounding. The decoder itself is not affected."""
    full, scaled = (
        gradients(make(cls_token=True, fill=fill, decoder={**DECODER, "encoder_gradient": one}))
        for one in ("full", setting)
    )
    for name, gradient in full.items():
        assert gradient.any(), name
        if name.startswith(ENCODER):
            assert torch.equal(scaled[name], factor * gradient), name
        elif name.startswith(CONDITION):
            assert scaled[name].any() and not torch.equal(scaled[name], gradient), name
        else:
            assert torch.equal(scaled[name], gradient), name


def test_the_gradient_of_the_encoder_s_tokens_is_not_scaled(make: Make) -> None:
    alone = gradients(make(decoder=DECODER), output=0.0, tap=1.0)
    none = gradients(make(decoder={**DECODER, "encoder_gradient": "none"}), tap=1.0)
    full = gradients(make(decoder=DECODER), tap=1.0)
    for name in (name for name in none if name.startswith(ENCODER)):
        torch.testing.assert_close(none[name], alone[name], rtol=1e-12, atol=1e-12)
        assert not torch.allclose(full[name], alone[name])


@pytest.mark.parametrize("setting", ["none", 0.3])
def test_the_output_keeps_every_bit(make: Make, masked_settings: dict[str, Any], setting: Any) -> None:
    scaled = {**masked_settings, "decoder": {**masked_settings["decoder"], "encoder_gradient": setting}}
    outputs = [make(**one)(*inputs(), visible=VISIBLE)[0] for one in (masked_settings, scaled)]
    assert torch.equal(outputs[0], outputs[1])
    assert not torch.equal(outputs[0], outputs[0].roll(1, 0))


@pytest.mark.parametrize("wrong", ["half", 0.0, -1.0, True])
def test_another_value_is_refused(wrong: Any) -> None:
    with pytest.raises(ValueError, match="encoder_gradient"):
        DiTParams(decoder={"encoder_gradient": wrong})


NONE = "backbone.decoder.encoder_gradient=none"


@pytest.mark.parametrize(
    ("recipe", "overrides", "warned"),
    [
        ("digits/sd-dit-c3", [], False),
        ("digits/sd-dit-c1", [NONE], True),
        ("digits/sd-dit-c1", ["backbone.decoder.encoder_gradient=0.1"], False),
        ("digits/sd-dit-c1", [], False),
    ],
)
def test_a_recipe_without_a_loss_on_the_encoder_is_warned_of(recipe: str, overrides: list[str], warned: bool) -> None:
    warnings = resolve(recipe, overrides).warnings
    assert any("the encoder is not trained" in warning for warning in warnings) == warned
    assert len(warnings) == warned


def test_a_run_of_an_earlier_version_without_the_key_does_not_differ() -> None:
    later = resolve("digits/sd-dit-c1").to_json()
    decoder = {key: value for key, value in later["backbone"]["decoder"].items() if key != "encoder_gradient"}
    earlier = {**later, "backbone": {**later["backbone"], "decoder": decoder}}
    assert differences(earlier, later) == []
    other = resolve("digits/sd-dit-c1", ["backbone.decoder.encoder_gradient=0.5"]).to_json()
    assert differences(earlier, other) == [("backbone.decoder.encoder_gradient", None, 0.5, "structural")]


def test_a_published_layout_holds_a_network_of_any_factor() -> None:
    """But not one with another number of heads, which computes something else."""
    overrides = ["backbone.null_label=zero", "backbone.width=16", "backbone.decoder.width=16"]
    full, none = (resolve("digits/maskdit", [*overrides, *more]) for more in ([], [NONE]))
    assert full.run_id != none.run_id
    state = build_backbone(none, device="cpu").state_dict()
    config, theirs = convert_to_layout(none, "maskdit", state)
    back = convert_from_layout(theirs, "maskdit", config)
    assert model_mismatch(full, back) == model_mismatch(none, back) == ""
    other = resolve("digits/maskdit", [*overrides, "backbone.decoder.heads=2"])
    assert model_mismatch(other, back) == "backbone.decoder.heads = 2, not 4"
