"""Converters of published weights: there and back, and what they refuse."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sddit.interfaces import Shapes
from sddit_dit import DiTParams
from sddit_dit.formats import DiTFormat, MaskDiTFormat


@pytest.mark.parametrize(("name", "layout"), [("dit_a", DiTFormat), ("maskdit_a", MaskDiTFormat)])
def test_there_and_back_changes_nothing(published: Any, name: str, layout: Any) -> None:
    stored = published(name)
    settings, shapes = layout.params(stored.meta["constructor"])
    ours = layout.to_ours(stored.state)
    parameters = {key: value for key, value in ours.items() if not key.endswith("positions.table")}
    theirs = layout.to_theirs(parameters, DiTParams(**settings), shapes)
    assert theirs.keys() == stored.state.keys()
    assert all(torch.equal(theirs[key].double(), stored.state[key]) for key in theirs)


def test_registered_names_give_sizes() -> None:
    assert DiTFormat.params({"class": "DiT_XL_2", "input_size": 32, "num_classes": 1000}) == (
        {"size": "XL", "patch": 2},
        Shapes((4, 32, 32), 1000, outputs=2),
    )
    settings, shapes = MaskDiTFormat.params({"class": "DiT-B/4", "img_resolution": 64, "num_classes": 10})
    assert (settings["size"], settings["patch"], settings["fill"]) == ("B", 4, "zero")
    assert shapes == Shapes((4, 64, 64), 10)
    assert DiTParams(**settings).decoder is not None
    plain, _ = MaskDiTFormat.params({"class": "DiT-B/2", "img_resolution": 32, "num_classes": 10, "use_decoder": False})
    assert DiTParams(**plain).decoder is None


def test_what_is_not_in_the_format_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown model 'UNet'"):
        DiTFormat.params({"class": "UNet", "input_size": 32, "num_classes": 10})
    with pytest.raises(KeyError, match=r"no such parameter in this format: rope\.weight"):
        DiTFormat.to_ours({"blocks.0.attn.qkv.bias": torch.zeros(3), "rope.weight": torch.zeros(3)})
