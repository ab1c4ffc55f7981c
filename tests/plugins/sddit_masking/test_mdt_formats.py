"""Test converters of MDT's published weights: round trips at every size, and rejected files."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sddit.interfaces import Shapes
from sddit_dit.formats import CHAIN
from sddit_flash.kernels import Eager
from sddit_flash.params import EagerParams
from sddit_masking.formats import MDTv1Format, MDTv2Format
from sddit_masking.mdt import MDT
from sddit_masking.params import MDTParams

LAYOUTS: dict[str, Any] = {"MDT": MDTv1Format, "MDTv2": MDTv2Format}


@pytest.mark.parametrize(("name", "layout"), [("mdtv1_a", MDTv1Format), ("mdtv2_a", MDTv2Format)])
def test_round_trip_is_bit_identical(published: Any, name: str, layout: Any) -> None:
    stored = published(name)
    described = layout.describe(stored.meta["constructor"])
    theirs = layout.to_theirs(layout.to_ours(stored.state), MDTParams(**described.backbone), described.shapes)
    assert theirs.keys() == stored.state.keys()
    assert all(torch.equal(theirs[key], stored.state[key]) for key in theirs)
    assert all(theirs[key].dtype == stored.state[key].dtype for key in theirs)


@pytest.mark.parametrize("family", LAYOUTS)
@pytest.mark.parametrize("size", ["S", "B", "L", "XL"])
def test_every_size_round_trips(family: str, size: str) -> None:
    layout = LAYOUTS[family]
    described = layout.describe({"class": f"{family}_{size}_2", "input_size": 32, "num_classes": 1000})
    params, shapes = MDTParams(**described.backbone), described.shapes
    with torch.device("meta"):
        network = MDT(params, image=shapes.image, num_classes=1000, outputs=2, attention=Eager(EagerParams()))
    ours = network.state_dict()
    theirs = layout.to_theirs(ours, params, shapes)
    back = layout.to_ours(theirs)
    assert {key: (t.shape, t.dtype) for key, t in back.items()} == {key: (t.shape, t.dtype) for key, t in ours.items()}
    floats = sum(tensor.numel() for tensor in theirs.values() if tensor.is_floating_point())
    assert floats == sum(p.numel() for p in network.parameters()) == params.cost(shapes, num_kept=256).parameters
    blocks = {key.rpartition(".attn.qkv.weight")[0] for key in theirs if key.endswith("attn.qkv.weight")}
    assert len(blocks) == params.named_size[0] + 1
    assert all(theirs[f"{block}.attn.rel_pos_bias.relative_position_index"].shape == (256, 256) for block in blocks)


def test_names_and_sizes_of_the_registered_v2(published: Any) -> None:
    """Every float tensor of MDTv2_S_2 and its number of elements, as in their class."""
    stored = published("full_mdtv2_s2")
    described = MDTv2Format.describe(stored.meta["constructor"])
    params, shapes = MDTParams(**described.backbone), described.shapes
    with torch.device("meta"):
        network = MDT(params, image=shapes.image, num_classes=1000, outputs=2, attention=Eager(EagerParams()))
    theirs = MDTv2Format.to_theirs(network.state_dict(), params, shapes)
    floats = {key: tensor for key, tensor in theirs.items() if tensor.is_floating_point()}
    assert floats.keys() == stored.meta["scales"].keys()
    assert sum(tensor.numel() for tensor in floats.values()) == stored.meta["float_values_in_state_dict"]


def test_registered_names_give_sizes() -> None:
    config = {"input_size": 32, "num_classes": 1000}
    first = MDTv1Format.describe({**config, "class": "MDT_XL_2"})
    assert first.backbone == {"size": "XL", "patch": 2, "version": "v1", "decoder_depth": 2}
    assert first.shapes == Shapes((4, 32, 32), 1000, outputs=2)
    assert first.noise_schedule == ("ddpm", {"learned_variance": True, **CHAIN})
    second = MDTv2Format.describe({**config, "class": "MDTv2_S_2", "decode_layer": 6, "learn_sigma": False})
    assert second.backbone == {"size": "S", "patch": 2, "version": "v2", "decoder_depth": 6}
    assert second.shapes.outputs == 1
    assert second.noise_schedule == ("ddpm", {"learned_variance": False, **CHAIN})
    with pytest.raises(ValueError, match="unknown model 'MDT_S_2'"):
        MDTv2Format.describe({**config, "class": "MDT_S_2"})


def test_an_odd_rest_loses_a_block_in_v2_as_theirs_does() -> None:
    config = {"hidden_size": 16, "depth": 7, "num_heads": 2, "patch_size": 2, "input_size": 8, "num_classes": 3}
    params = MDTParams(**MDTv2Format.describe({**config, "decode_layer": 2}).backbone)
    assert (params.named_size, params.encoder_depth) == ((6, 16, 2), 4)
    params = MDTParams(**MDTv2Format.describe({**config, "class": "MDTv2_S_2", "decode_layer": 3}).backbone)
    assert (params.named_size, params.encoder_depth) == ((7, 16, 2), 4)
    registered = {"class": "MDTv2_S_2", "input_size": 8, "num_classes": 3, "decode_layer": 3}
    assert MDTParams(**MDTv2Format.describe(registered).backbone).named_size == (11, 384, 6)
    assert MDTParams(**MDTv1Format.describe({**config, "decode_layer": 2}).backbone).named_size == (7, 16, 2)


@pytest.mark.parametrize(("name", "other"), [("mdtv1_a", MDTv2Format), ("mdtv2_a", MDTv1Format)])
def test_files_of_another_version_are_rejected(published: Any, name: str, other: Any) -> None:
    with pytest.raises(KeyError, match=r"no such parameter in this format: \w*blocks\.0"):
        other.to_ours(published(name).state)


def test_an_unknown_name_is_rejected() -> None:
    with pytest.raises(KeyError, match=r"no such parameter in this format: rope\.weight"):
        MDTv2Format.to_ours({"rope.weight": torch.zeros(1)})
