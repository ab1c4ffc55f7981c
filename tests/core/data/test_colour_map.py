"""Test the linear map from latents to colours, and what a cache records of it and of its codec."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from sddit.data.codec_record import CodecRecord, is_colour_map_of, record_of
from sddit.data.colour_map import ColourFit
from sddit.data.declared import DeclaredParams, declared_table
from sddit.data.latent_writing import write_cache
from sddit.data.latents import read_index
from sddit.errors import SdditError
from sddit.interfaces import ColourMap, Component, Selected
from sddit.recipes.recipe import facts_to_json
from sddit.testing.toys.params import ToyCodecParams

FACTOR = 4
TRUE = np.array([[0.05, -0.02, 0.03], [0.01, 0.06, -0.04]])  # [C, 3]


def made(count: int, noise: float = 0.0, seed: int = 0) -> tuple[NDArray[Any], NDArray[np.uint8]]:
    """Return latents [n, 2, 3, 5], and images whose mean colours are linear in them up to noise and rounding."""
    rng = np.random.default_rng(seed)
    latents = rng.normal(size=(count, 2, 3, 5)).astype(np.float32)
    colours = np.einsum("nchw,ck->nkhw", latents, TRUE) + 0.5 + noise * rng.normal(size=(count, 3, 3, 5))
    images = np.round(colours.clip(0, 1) * 255).astype(np.uint8)
    return latents, images.repeat(FACTOR, axis=2).repeat(FACTOR, axis=3)


def fitted(*parts: tuple[NDArray[Any], NDArray[np.uint8]]) -> ColourMap:
    fit = ColourFit(2, FACTOR)
    for latents, images in parts:
        fit.add(latents, images)
    found = fit.result()
    assert found is not None
    return found


def test_a_linear_relation_is_found_and_explains_everything() -> None:
    found = fitted(made(200))
    assert np.allclose(found.weights, TRUE.T, atol=2e-4)
    assert np.allclose(found.offset, 0.5, atol=2e-4)
    assert min(found.r2) > 0.99
    assert is_colour_map_of(2, found)


def test_the_explained_fraction_is_of_images_that_were_not_fitted() -> None:
    """Noise as large as the signal leaves about half of the variance; without a relation, nothing is explained."""
    signal = float(np.sqrt((TRUE**2).sum(axis=0).mean()))
    noisy = fitted(made(400, noise=signal))
    assert 0.3 < min(noisy.r2) <= max(noisy.r2) < 0.7
    latents, _ = made(400, seed=1)
    _, images = made(400, seed=2)
    assert max(fitted((latents, images)).r2) < 0.01
    few = fitted((latents[:4], images[:4]))
    assert max(few.r2) < 0.2, "a fit of two images explains nothing of two others"


def test_parts_give_the_map_of_the_whole() -> None:
    latents, images = made(50, noise=0.02)
    whole = fitted((latents, images))
    parts = fitted((latents[:13], images[:13]), (latents[13:], images[13:]))
    assert np.allclose(whole.weights, parts.weights, rtol=1e-9)
    assert np.allclose(whole.r2, parts.r2, rtol=1e-9)
    assert not np.allclose(whole.weights, fitted((latents[:13], images[:13])).weights, rtol=1e-3)  # the control


def test_a_mirrored_pair_is_on_one_side() -> None:
    """Pairs of equal images: as two that are not fitted measure it, the map of one image explains nothing."""
    latents, images = made(8, noise=0.3)
    pairs = fitted((latents.repeat(2, axis=0), images.repeat(2, axis=0)))
    single = fitted((latents[[0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7]], images.repeat(2, axis=0)))
    assert pairs.r2 == single.r2
    assert max(pairs.r2) < 0.5


def test_a_constant_colour_is_not_explained() -> None:
    latents, images = made(40)
    images[:, 2] = 7
    assert fitted((latents, images)).r2[2] == 0.0


def test_fewer_than_three_images_give_no_map() -> None:
    fit = ColourFit(2, FACTOR)
    fit.add(*made(2))
    assert fit.result() is None


RECORD = CodecRecord(name="toy/toy", settings={"side": 4}, sha256="ab" * 32, factor=4, pixel_range=(0.0, 1.0))


def cache(folder: Path, **more: Any) -> Path:
    latents, _ = made(40)
    moments = np.concatenate([latents + 3, np.full_like(latents, 0.1)], axis=1)
    labels = np.zeros(40, dtype=np.int64)
    return write_cache(
        folder, [(moments, labels)], layout="mean+std", scale=0.5, encoder="toy", class_names=(), **more
    ).parent


def test_an_index_records_codec_shift_and_map(tmp_path: Path) -> None:
    latents, images = made(40)
    fit = ColourFit(2, FACTOR)
    fit.add(latents + 3, images)
    index = read_index(str(cache(tmp_path / "new", shift=3.0, codec=RECORD, colours=fit))).index
    assert index.codec == RECORD
    assert index.shift == 3.0
    assert index.colours == fit.result()
    assert np.abs(index.mean).max() < 0.2, "the shift is subtracted"
    plain = read_index(str(cache(tmp_path / "plain"))).index
    assert np.abs(np.array(plain.mean) - 1.5).max() < 0.2  # the control: (3 - 0) * 0.5
    assert plain.std == index.std


def test_a_cache_without_them_is_written_and_identified_as_before(tmp_path: Path) -> None:
    folder = cache(tmp_path)
    written = json.loads((folder / "latents.json").read_text(encoding="utf-8"))
    assert written.keys().isdisjoint({"shift", "codec", "colours", "allow_implausible"})
    identity = read_index(str(folder)).index.identity()
    assert identity.keys() == written.keys()
    with_codec = read_index(str(cache(tmp_path / "codec", codec=RECORD))).index
    assert with_codec.identity() == identity, "neither codec nor map changes the latents"
    shifted = read_index(str(cache(tmp_path / "shifted", shift=1.0))).index
    assert shifted.identity()["shift"] == 1.0


@pytest.mark.parametrize(
    "change",
    [
        {"weights": [[0.1, 0.2]] * 2},
        {"weights": [[0.1]] * 3},
        {"offset": [0.5, 0.5]},
        {"factor": 0},
        {"weights": "none"},
    ],
)
def test_a_damaged_map_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    path = cache(tmp_path) / "latents.json"
    index = json.loads(path.read_text(encoding="utf-8"))
    right = {"factor": 4, "weights": [[0.1, 0.2]] * 3, "offset": [0.5] * 3, "r2": [0.7] * 3}
    path.write_text(json.dumps({**index, "colours": right}), encoding="utf-8")
    assert read_index(str(tmp_path)).index.colours is not None  # the control
    path.write_text(json.dumps({**index, "colours": {**right, **change}}), encoding="utf-8")
    with pytest.raises(SdditError, match="SD-D341"):
        read_index(str(tmp_path))


def test_what_a_cache_records_of_a_codec() -> None:
    component: Component[Any] = Component(
        kind="codecs", name="toy", factory="nowhere:Built", params=ToyCodecParams, summary="Toy.", origin="toy"
    )
    record = record_of(Selected(component, ToyCodecParams(side=8, scale=2.0)))
    assert record.name == "toy/toy"
    assert record.settings == {"side": 8, "scale": 2.0, "sha256": ""}
    assert (record.factor, record.pixel_range) == (8, (-1.0, 1.0))
    assert CodecRecord.model_validate_json(record.model_dump_json()) == record


def test_facts_of_latents_are_declared_where_the_cache_is_missing() -> None:
    colours = ColourMap(8, ((0.1, 0.2),) * 3, (0.5,) * 3, (0.7,) * 3)
    table = {"factor": 8, "weights": [[0.1, 0.2]] * 3, "offset": [0.5] * 3, "r2": [0.7] * 3}
    given = {
        "image": [2, 4, 4],
        "latent_scale": 0.5,
        "latent_shift": 0.1,
        "codec": "toy/toy",
        "codec_sha256": "ab" * 32,
    }
    facts = DeclaredParams(**given, colours=table).facts()
    assert facts.colours == colours
    again = json.loads(json.dumps(declared_table(facts_to_json(facts), {})))
    again.pop("name")
    assert DeclaredParams(**again).facts() == facts
    assert DeclaredParams(**{**given, "latent_shift": 0.0}).facts().fingerprint != facts.fingerprint
    assert DeclaredParams(**given).facts().fingerprint == facts.fingerprint, "a map changes no latent"
    for wrong in ({"image": [1, 4, 4]}, {"image": [3, 4, 4], "latents": True}):
        with pytest.raises(ValueError, match=r"does not map|of latents"):
            DeclaredParams(**{**given, **wrong}, colours=table)
