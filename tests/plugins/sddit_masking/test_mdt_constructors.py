"""Test the arguments inferred from a published MDT, and features that its format does not support."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from sddit.errors import SdditError
from sddit.exchange.conversion import convert_from_layout
from sddit.exchange.importing import recipe_for_weights
from sddit.interfaces import Shapes
from sddit_flash.kernels import Eager
from sddit_flash.params import EagerParams
from sddit_masking.formats import MDTv1Format, MDTv2Format
from sddit_masking.mdt import MDT
from sddit_masking.params import MDTParams

FORMS: dict[str, Any] = {"mdtv1": MDTv1Format, "mdtv2": MDTv2Format}


@pytest.mark.parametrize("layout", FORMS)
def test_published_arguments_round_trip(published: Callable[[str], Any], layout: str) -> None:
    stored = published(f"{layout}_a")
    state = {name: t.float() if t.is_floating_point() else t for name, t in stored.state.items()}
    known = convert_from_layout(state, layout, {})
    constructor = stored.meta["constructor"]
    assert {key: constructor[key] for key in known.config} == known.config
    assert known.guessed == ({"decode_layer": 2} if layout == "mdtv1" else {})
    theirs = FORMS[layout].to_theirs(known.build_trained().state_dict(), known.params, known.shapes)
    assert theirs.keys() == state.keys()
    assert all(torch.equal(theirs[name].to(state[name].dtype), state[name]) for name in state)


@pytest.mark.parametrize("layout", FORMS)
def test_a_recipe_is_made_that_samples_as_published(published: Callable[[str], Any], layout: str) -> None:
    known = convert_from_layout(published(f"{layout}_a").state, layout, {})
    recipe = recipe_for_weights(known, "x")
    assert recipe.warnings == ()
    assert recipe.guidance.params.model_dump()["shape"] == "power_cosine"
    assert [view.name for view in recipe.pair_sampler.params.views()] == ["full", "masked"]
    assert recipe.shapes == Shapes((4, 8, 8), 10, outputs=2)


def test_mismatched_arguments_are_rejected(published: Callable[[str], Any]) -> None:
    state = published("mdtv2_a").state
    for layout, given, words in (
        ("mdtv1", {}, r"SD-C455(.|\n)*no blocks blocks\.0"),
        ("dit", {}, "SD-C455"),
        ("mdtv2", {"num_heads": 8}, "SD-C454(.|\n)*4, as in the tensors"),
        ("mdtv2", {"num_head": 4}, "SD-C454(.|\n)*unknown config key 'num_head'"),
    ):
        with pytest.raises(SdditError, match=words):
            convert_from_layout(state, layout, given)
    sizes: dict[str, Any] = {"depth": 6, "width": 24, "heads": 3, "decoder_depth": 2}
    for layout, settings in (
        ("mdtv1", {"version": "v2"}),
        ("mdtv2", {"version": "v1"}),
        ("mdtv2", {"input_skips": False}),
    ):
        with pytest.raises(ValueError, match="does not support"):
            FORMS[layout].config(MDTParams(**sizes, **settings), Shapes((4, 8, 8), 3), {})


def numbered(depth: int, decoder: int) -> dict[str, Any]:
    sizes = {"hidden_size": 24, "num_heads": 3, "patch_size": 2, "input_size": 8, "num_classes": 3}
    return {**sizes, "depth": depth, "decode_layer": decoder}


def file_of(config: dict[str, Any], layout: str = "mdtv2") -> dict[str, torch.Tensor]:
    """Return the state that an implementation of that layout would save."""
    described = FORMS[layout].describe(config)
    params, shapes = MDTParams(**described.backbone), described.shapes
    network = MDT(params, image=shapes.image, num_classes=3, outputs=2, attention=Eager(EagerParams()))
    state: dict[str, torch.Tensor] = FORMS[layout].to_theirs(network.state_dict(), params, shapes)
    return state


def test_the_depth_that_v2_was_made_with_is_accepted_where_it_lost_a_block() -> None:
    state = file_of(numbered(7, 2))  # blocks 2 + 2 + 2
    for given in (numbered(7, 2), numbered(6, 2), {"depth": 7}, {"depth": 6}, {}):
        known = convert_from_layout(state, "mdtv2", given)
        assert (known.config["depth"], known.config["decode_layer"]) == (6, 2)
    for wrong in (5, 8):
        with pytest.raises(SdditError, match=rf"SD-C454(.|\n)*depth = {wrong}(.|\n)*6, as in the tensors"):
            convert_from_layout(state, "mdtv2", numbered(wrong, 2))
    with pytest.raises(SdditError, match=r"SD-C454(.|\n)*depth = 7(.|\n)*6, as in the tensors"):
        convert_from_layout(file_of(numbered(6, 2), "mdtv1"), "mdtv1", {"depth": 7})  # v1 loses none


def test_a_registered_class_must_be_of_the_size_of_the_tensors() -> None:
    config = {"class": "MDTv2_S_2", "input_size": 4, "num_classes": 3}
    for layers in (4, 3):  # of 12 blocks, and of the 11 that an odd encoder leaves
        state = file_of({**config, "decode_layer": layers})
        for name in ("MDTv2_S_2", "masked_diffusion.models.MDTv2"):
            assert convert_from_layout(state, "mdtv2", {"class": name}).config["hidden_size"] == 384
        for name in ("MDTv2_B_2", "MDTv2_S_4", "MDTv2_L_2"):
            with pytest.raises(SdditError, match=rf"SD-C454(.|\n)*class = {name}(.|\n)*width 384, patch 2"):
                convert_from_layout(state, "mdtv2", {"class": name})


@pytest.mark.parametrize("layout", FORMS)
def test_a_label_table_without_null_row(published: Callable[[str], Any], layout: str) -> None:
    state = published(f"{layout}_a").state
    name = "y_embedder.embedding_table.weight"
    known = convert_from_layout(state, layout, {"class_dropout_prob": 0.0})
    assert (known.shapes.num_classes, known.never_drops_labels) == (len(state[name]), True)
    table = known.state["label.weight"]
    assert torch.equal(table[:-1], state[name])
    assert not table[-1].any()
    recipe = recipe_for_weights(known, "x")
    assert (recipe.guidance.component.name, recipe.dataset.params.label_drop, recipe.warnings) == ("none", 0, ())
    assert convert_from_layout(state, layout, {}).shapes.num_classes == len(state[name]) - 1
