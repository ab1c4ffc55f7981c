"""What tensors tell of a published MDT, and what has no place among its files."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from sddit.errors import SdditError
from sddit.exchange.importing import recipe_of
from sddit.exchange.published import understood
from sddit.interfaces import Shapes
from sddit_masking.formats import MDTv1Format, MDTv2Format
from sddit_masking.params import MDTParams

FORMS: dict[str, Any] = {"mdtv1": MDTv1Format, "mdtv2": MDTv2Format}


@pytest.mark.parametrize("layout", FORMS)
def test_published_numbers_are_understood_and_come_back(published: Callable[[str], Any], layout: str) -> None:
    stored = published(f"{layout}_a")
    state = {name: t.float() if t.is_floating_point() else t for name, t in stored.state.items()}
    known = understood(state, layout, {})
    constructor = stored.meta["constructor"]
    assert {key: constructor[key] for key in known.config} == known.config
    assert known.guessed == ({"decode_layer": 2} if layout == "mdtv1" else {})
    theirs = FORMS[layout].to_theirs(known.trained().state_dict(), known.params, known.shapes)
    assert theirs.keys() == state.keys()
    assert all(torch.equal(theirs[name].to(state[name].dtype), state[name]) for name in state)


@pytest.mark.parametrize("layout", FORMS)
def test_a_recipe_is_made_that_samples_as_published(published: Callable[[str], Any], layout: str) -> None:
    known = understood(published(f"{layout}_a").state, layout, {})
    recipe = recipe_of(known, "x")
    assert recipe.warnings == ()
    assert recipe.guidance.params.model_dump()["shape"] == "power_cosine"
    assert [view.name for view in recipe.pair_sampler.params.views()] == ["full", "masked"]
    assert recipe.shapes == Shapes((4, 8, 8), 10, outputs=2)


def test_what_does_not_fit_is_refused(published: Callable[[str], Any]) -> None:
    state = published("mdtv2_a").state
    for layout, given, words in (
        ("mdtv1", {}, r"SD-C455(.|\n)*no blocks blocks\.0"),
        ("dit", {}, "SD-C455"),
        ("mdtv2", {"num_heads": 8}, "SD-C454(.|\n)*4, as the tensors"),
        ("mdtv2", {"num_head": 4}, "SD-C454(.|\n)*no use for 'num_head'"),
    ):
        with pytest.raises(SdditError, match=words):
            understood(state, layout, given)
    sizes: dict[str, Any] = {"depth": 6, "width": 24, "heads": 3, "decoder_depth": 2}
    for layout, settings in (
        ("mdtv1", {"version": "v2"}),
        ("mdtv2", {"version": "v1"}),
        ("mdtv2", {"input_skips": False}),
    ):
        with pytest.raises(ValueError, match="no place for"):
            FORMS[layout].config(MDTParams(**sizes, **settings), Shapes((4, 8, 8), 3), {})
