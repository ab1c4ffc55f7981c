"""Test the codec of a cache's own colour map."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import sddit
from sddit.data.colour_map import ColourFit
from sddit.data.latent_writing import write_cache
from sddit.data.preview import encoder_units
from sddit.errors import SdditError
from sddit.interfaces import ColourMap, DataFacts
from sddit.testing import check
from sddit_standard.datasets.params import LatentsParams

MAP = ColourMap(4, ((0.25, 0.0), (0.0, 0.25), (0.0, 0.0)), (0.5, 0.5, 0.2), (0.9, 0.8, 0.7))
FACTS = DataFacts(
    image=(2, 3, 5),
    class_names=(),
    train_size=4,
    test_size=0,
    fingerprint="made",
    mean=(0.0, 0.0),
    std=(1.0, 1.0),
    source="made here",
    is_latent=True,
    latent_scale=0.5,
    latent_shift=1.0,
    colours=MAP,
)


def test_linear_conforms() -> None:
    check("linear", "codecs", runtime={"facts": FACTS})


def test_a_place_becomes_a_square_of_its_colour() -> None:
    codec = sddit.build("codecs", "linear", facts=FACTS, device="cpu")
    latents = torch.zeros(1, 2, 1, 2)
    latents[0, :, 0, 1] = torch.tensor([2.0, -1.0])
    images = codec.decode(latents)
    assert images.shape == (1, 3, 4, 8)
    assert images[0, :, :, :4].flatten(1).unique(dim=1).tolist() == [[128], [128], [51]]
    assert images[0, :, :, 4:].flatten(1).unique(dim=1).tolist() == [[255], [64], [51]]


def test_it_is_for_previews_only_and_does_not_encode() -> None:
    codec = sddit.build("codecs", "linear", facts=FACTS, device="cpu")
    assert (codec.facts.preview_only, codec.facts.encodes) == (True, False)
    assert (codec.facts.scale, codec.facts.shift) == (0.5, 1.0)
    with pytest.raises(SdditError, match="SD-D353"):
        codec.encode(torch.zeros(1, 3, 8, 8, dtype=torch.uint8))


@pytest.mark.parametrize("facts", [None, replace(FACTS, colours=None)])
def test_it_needs_a_cache_with_a_map(facts: DataFacts | None) -> None:
    with pytest.raises(SdditError, match="SD-D350"):
        sddit.build("codecs", "linear", facts=facts, device="cpu")


def test_a_cache_with_shift_and_map_is_read_shown_and_undone(tmp_path: Path) -> None:
    """Latents with mean 3, of images whose colours are linear in them."""
    rng = np.random.default_rng(0)
    latents = rng.normal(size=(60, 2, 4, 4)).astype(np.float32)
    colours = np.stack([0.5 + 0.1 * latents[:, 0], 0.5 - 0.1 * latents[:, 1], 0.3 + 0.05 * latents.sum(axis=1)], axis=1)
    images = np.round(colours.clip(0, 1) * 255).astype(np.uint8).repeat(8, axis=2).repeat(8, axis=3)
    fit = ColourFit(2, 8)
    fit.add(latents + 3, images)
    moments = np.concatenate([latents + 3, np.full_like(latents, 0.01)], axis=1)
    parts = [(moments, np.zeros(60, dtype=np.int64))]
    write_cache(tmp_path, parts, layout="mean+std", scale=0.5, encoder="made", class_names=(), shift=3.0, colours=fit)
    stated = json.loads((tmp_path / "latents.json").read_text(encoding="utf-8"))
    assert min(stated["colours"]["r2"]) > 0.98
    params = LatentsParams(path=str(tmp_path), posterior="mean")
    dataset = sddit.build("datasets", "latents", {"path": str(tmp_path), "posterior": "mean"}, split="train")
    x, _ = dataset.fetch(range(60))
    assert torch.allclose(x, torch.from_numpy(0.5 * latents), atol=1e-5)
    unscaled = encoder_units(x, params, dataset.facts)
    assert torch.allclose(unscaled, torch.from_numpy(latents + 3).double(), atol=1e-5)
    shown = sddit.build("codecs", "linear", facts=dataset.facts, device="cpu").decode(unscaled)
    error = (shown.float() - torch.from_numpy(images).float()).abs().mean()
    assert error < 2
    wrong = sddit.build("codecs", "linear", facts=dataset.facts, device="cpu").decode(x)  # the control: still scaled
    assert (wrong.float() - torch.from_numpy(images).float()).abs().mean() > 20
