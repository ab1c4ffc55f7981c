"""Test `sddit.load(..., round_tables=True)`: published code holds the embeddings of positions in float32."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import sddit
from sddit.errors import SdditError
from sddit_dit.blocks import sincos_positions

Read = Callable[[str], Any]


def load(stored: Any, path: Path, *, without: str = "", **settings: Any) -> sddit.Model:
    """Load the published DiT of the stored numbers."""
    save_file({name: tensor for name, tensor in stored.state.items() if name != without}, path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return sddit.load(path, layout="dit", config=stored.meta["constructor"], **settings)


def table(model: sddit.Model) -> Tensor:
    return model.backbone.get_buffer("positions.table")


def test_tables_that_the_file_lacks_are_exact_or_rounded(published: Read, tmp_path: Path) -> None:
    stored, path = published("dit_a"), tmp_path / "dit.safetensors"
    settings: dict[str, Any] = {"without": "pos_embed", "dtype": torch.float64}
    exact, rounded = load(stored, path, **settings), load(stored, path, **settings, round_tables=True)
    expected = sincos_positions(exact.backbone.grid, table(exact).shape[1])
    assert torch.equal(table(exact), expected)
    assert torch.equal(table(rounded), expected.float().double())
    assert 1e-8 < (table(rounded) - table(exact)).abs().max() < 4e-8
    weights = zip(rounded.backbone.parameters(), exact.backbone.parameters(), strict=True)
    assert all(torch.equal(one, two) for one, two in weights)


def test_a_table_in_the_file_is_kept(published: Read, tmp_path: Path) -> None:
    stored, path = published("dit_a"), tmp_path / "dit.safetensors"
    stored.state["pos_embed"] = stored.state["pos_embed"].double() + 1e-10
    for settings in ({}, {"round_tables": True}):
        model = load(stored, path, dtype="float64", **settings)
        assert torch.equal(table(model), stored.state["pos_embed"][0])


def test_only_float64_can_be_rounded(published: Read, tmp_path: Path) -> None:
    stored = published("dit_a")
    with pytest.raises(SdditError, match=r"SD-T925(.|\n)*only float64 is rounded(.|\n)*round_tables"):
        load(stored, tmp_path / "dit.safetensors", dtype="float32", round_tables=True)
