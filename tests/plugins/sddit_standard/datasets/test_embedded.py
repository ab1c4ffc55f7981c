"""Test that the embedded sets match `facts.json`, and that the network receives what the recipe says."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from statistics import fmean

import numpy as np
import pytest
import torch

from sddit.data import seen_std
from sddit.data.scaling import refuse_constant
from sddit.errors import SdditError
from sddit.interfaces import DataFacts, DatasetParams
from sddit_standard.datasets.embedded import embedded_facts, embedded_table, fingerprint
from sddit_standard.datasets.image_datasets import MemorySplit, digits, fashion
from sddit_standard.datasets.params import DigitsParams, FashionParams

NAMES = ("digits", "fashion")


@pytest.mark.parametrize("name", NAMES)
def test_the_stored_facts_are_those_of_the_images(name: str) -> None:
    facts, train, test = embedded_facts(name), embedded_table(name, "train"), embedded_table(name, "test")
    assert (facts.train_size, facts.test_size) == (len(train.labels), len(test.labels))
    assert train.images.shape[1:] == test.images.shape[1:] == facts.image
    unit = 2 * train.images.astype(np.float64) / train.levels - 1
    np.testing.assert_allclose(facts.mean, unit.mean(axis=(0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(facts.std, unit.std(axis=(0, 2, 3)), rtol=1e-12)
    assert facts.fingerprint == fingerprint(train, test)
    for table in (train, test):
        assert table.images.max() == table.levels
        assert set(table.labels.tolist()) == set(range(facts.num_classes))
        assert len(table.images) == len(table.labels)


@pytest.mark.parametrize("name", NAMES)
def test_the_test_split_is_balanced_and_held_out(name: str) -> None:
    train, test = embedded_table(name, "train"), embedded_table(name, "test")
    assert len(set(np.bincount(test.labels).tolist())) == 1
    trained = {image.tobytes() for image in train.images}
    assert not [image for image in test.images if image.tobytes() in trained]
    assert [image for image in train.images[:5] if image.tobytes() in trained]


def test_a_fingerprint_sees_a_pixel_a_label_and_the_split() -> None:
    train, test = embedded_table("digits", "train"), embedded_table("digits", "test")
    images, labels = train.images.copy(), train.labels.copy()
    images[7, 0, 3, 3] ^= 1
    labels[7] = (labels[7] + 1) % 10
    changed = [
        fingerprint(replace(train, images=images), test),
        fingerprint(replace(train, labels=labels), test),
        fingerprint(test, train),
    ]
    assert len({*changed, fingerprint(train, test)}) == 4


@pytest.mark.parametrize("normalize", ["range", "standard"])
def test_the_network_sees_the_std_that_is_promised(normalize: str) -> None:
    params = DigitsParams(normalize=normalize)
    data = digits(params, split="train")
    x, labels = data.fetch(range(len(data)))
    assert x.dtype == torch.float32
    assert x.shape == (1437, 1, 8, 8)
    assert labels.dtype == torch.int64
    assert x.double().std(correction=0).item() == pytest.approx(seen_std(params, data.facts), rel=1e-6)
    if normalize == "standard":
        assert seen_std(params, data.facts) == pytest.approx(0.5)
        assert x.mean().item() == pytest.approx(0, abs=1e-6)
    else:
        assert (x.min().item(), x.max().item()) == (-1.0, 1.0)


def test_seen_std_pools_the_channels_around_one_mean() -> None:
    values = torch.randn(50, 3, 4, 4, dtype=torch.float64) * torch.tensor([0.1, 0.3, 0.5])[:, None, None]
    values += torch.tensor([-0.5, 0.0, 0.8])[:, None, None]
    facts = DataFacts(
        image=(3, 4, 4),
        class_names=(),
        train_size=50,
        test_size=0,
        fingerprint="",
        mean=tuple(values.mean(dim=(0, 2, 3)).tolist()),
        std=tuple(values.std(dim=(0, 2, 3), correction=0).tolist()),
        source="",
    )
    assert seen_std(DatasetParams(), facts) == pytest.approx(values.std(correction=0).item(), rel=1e-12)
    assert seen_std(DatasetParams(), facts) != pytest.approx(fmean(facts.std), rel=0.1)
    assert seen_std(DatasetParams(normalize="standard"), facts) == pytest.approx(0.5, rel=1e-12)


@pytest.mark.parametrize("normalize", ["range", "standard"])
def test_to_images_gives_back_the_very_bytes(normalize: str) -> None:
    data = fashion(FashionParams(normalize=normalize), split="test")
    images = data.to_images(data.fetch(range(200))[0])
    original = torch.from_numpy(embedded_table("fashion", "test").images[:200])
    assert images.dtype == torch.uint8
    assert images.shape == (200, 3, 28, 28)
    assert torch.equal(images, original.expand(-1, 3, -1, -1))
    assert not torch.equal(images, original.flip(0).expand(-1, 3, -1, -1))


def test_to_images_cuts_what_is_too_dark_or_too_bright() -> None:
    data = digits(DigitsParams(), split="test")
    x = torch.tensor([-3.0, -1.0, 0.0, 1.0, 3.0], dtype=torch.float64).expand(1, 1, 8, 5)
    assert data.to_images(x)[0, 0, 0].tolist() == [0, 0, 128, 255, 255]


def test_fetch_takes_any_order_and_repeats() -> None:
    data = digits(DigitsParams(), split="train")
    x, labels = data.fetch(range(len(data)))
    ids = [5, 1000, 5, 0]
    some, some_labels = data.fetch(ids)
    assert torch.equal(some, x[ids])
    assert torch.equal(some_labels, labels[ids])
    with pytest.raises(IndexError):
        data.fetch([1437])


def build(labels: bool) -> MemorySplit:
    return digits(DigitsParams(labels=labels), split="train")


def test_without_labels_there_are_no_classes() -> None:
    with_classes, without = build(labels=True), build(labels=False)
    assert (with_classes.facts.num_classes, without.facts.num_classes) == (10, 0)
    assert with_classes.fetch([0, 1, 2])[1].any()
    assert not without.fetch(range(len(without)))[1].any()
    assert torch.equal(with_classes.fetch([3])[0], without.fetch([3])[0])
    assert with_classes.facts.fingerprint != without.facts.fingerprint
    assert without.facts.domain == "digits"


def test_flat_images_are_refused_where_their_scale_is_needed() -> None:
    facts = replace(embedded_facts("digits"), image=(2, 8, 8), mean=(0.0, 1.0), std=(0.5, 0.0))
    refuse_constant(DatasetParams(), facts)
    for params, std in ((DatasetParams(normalize="standard"), (0.5, 0.0)), (DatasetParams(), (0.0, 0.0))):
        with pytest.raises(SdditError, match="SD-D309"):
            refuse_constant(params, replace(facts, std=std))


def test_questions_about_data_import_no_torch() -> None:
    code = """
import sys
import sddit_standard as b
assert "torch" not in sys.modules and "numpy" not in sys.modules
b.DigitsParams().facts(); b.FashionParams().facts()
import sddit.data
assert "torch" not in sys.modules and "numpy" not in sys.modules
import sddit_standard.datasets.folder, sddit_standard.datasets.idx, sddit.data.order
assert "torch" not in sys.modules
import sddit_standard.datasets.image_datasets
assert "torch" in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
