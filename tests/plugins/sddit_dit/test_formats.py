"""Test converters of published weights: round trips and rejected files."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sddit.interfaces import Shapes
from sddit_dit.formats import CHAIN, DiTFormat, MaskDiTFormat
from sddit_dit.params import DiTParams


@pytest.mark.parametrize(("name", "layout"), [("dit_a", DiTFormat), ("maskdit_a", MaskDiTFormat)])
def test_round_trip_is_bit_identical(published: Any, name: str, layout: Any) -> None:
    stored = published(name)
    described = layout.describe(stored.meta["constructor"])
    ours = layout.to_ours(stored.state)
    parameters = {key: value for key, value in ours.items() if not key.endswith("positions.table")}
    theirs = layout.to_theirs(parameters, DiTParams(**described.backbone), described.shapes)
    assert theirs.keys() == stored.state.keys()
    assert all(torch.equal(theirs[key].double(), stored.state[key]) for key in theirs)


def test_registered_names_give_sizes() -> None:
    dit = DiTFormat.describe({"class": "DiT_XL_2", "input_size": 32, "num_classes": 1000})
    assert (dit.backbone, dit.shapes) == ({"size": "XL", "patch": 2}, Shapes((4, 32, 32), 1000, outputs=2))
    assert dit.noise_schedule == ("ddpm", {"learned_variance": True, **CHAIN})

    masked = MaskDiTFormat.describe({"class": "DiT-B/4", "img_resolution": 64, "num_classes": 10})
    assert masked.backbone == {"size": "B", "patch": 4, "null_label": "zero", "decoder": {}, "fill": "zero"}
    assert masked.shapes == Shapes((4, 64, 64), 10)
    assert masked.noise_schedule == ("edm", {"sigma_data": 0.5})

    config = {"class": "DiT-B/2", "img_resolution": 32, "num_classes": 10, "use_decoder": False}
    assert DiTParams(**MaskDiTFormat.describe(config).backbone).decoder is None


def test_unknown_parameters_are_rejected() -> None:
    with pytest.raises(ValueError, match="unknown model 'UNet'"):
        DiTFormat.describe({"class": "UNet", "input_size": 32, "num_classes": 10})
    with pytest.raises(ValueError, match="unknown model 'DiT-H/2'"):  # a size that only MaskDiT's tensors identify
        DiTFormat.describe({"class": "DiT-H/2", "input_size": 32, "num_classes": 10})
    with pytest.raises(KeyError, match=r"no such parameter in this format: rope\.weight"):
        DiTFormat.to_ours({"blocks.0.attn.qkv.bias": torch.zeros(3), "rope.weight": torch.zeros(3)})
