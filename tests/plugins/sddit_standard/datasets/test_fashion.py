"""Fashion-MNIST from the four published files: read exactly, and refused with a code where they are broken."""

from __future__ import annotations

import gzip
import os
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from sddit.errors import SdditError
from sddit_standard.datasets import fashion as module
from sddit_standard.datasets.image_datasets import fashion
from sddit_standard.datasets.params import FashionParams

Array = NDArray[np.uint8]


def write(path: Path, array: Array) -> None:
    header = struct.pack(f">{1 + array.ndim}I", 0x0800 + array.ndim, *array.shape)
    path.write_bytes(gzip.compress(header + array.tobytes()))


def make(folder: Path, train: int = 30, test: int = 10) -> dict[str, Array]:
    folder.mkdir()
    random = np.random.default_rng(0)
    arrays = {}
    for part, n in (("train", train), ("t10k", test)):
        arrays[f"{part}-images-idx3-ubyte.gz"] = random.integers(0, 256, (n, 28, 28), dtype=np.uint8)
        arrays[f"{part}-labels-idx1-ubyte.gz"] = np.arange(n, dtype=np.uint8) % 10
    for name, array in arrays.items():
        write(folder / name, array)
    return arrays


def code_of(source: str) -> str:
    with pytest.raises(SdditError) as refused:
        FashionParams(source=source).facts()
    return refused.value.problems[0].code


def test_the_files_are_read_exactly(tmp_path: Path) -> None:
    arrays = make(tmp_path / "f")
    params = FashionParams(source=str(tmp_path / "f"))
    for split, part in (("train", "train"), ("test", "t10k")):
        data = fashion(params, split=split)
        x, labels = data.fetch(range(len(data)))
        assert torch.equal(data.to_images(x)[:, 0], torch.from_numpy(arrays[f"{part}-images-idx3-ubyte.gz"]))
        assert labels.tolist() == arrays[f"{part}-labels-idx1-ubyte.gz"].tolist()
    facts = params.facts()
    assert (facts.train_size, facts.test_size, facts.num_classes, facts.domain) == (30, 10, 10, "fashion")
    unit = 2 * arrays["train-images-idx3-ubyte.gz"].astype(float) / 255 - 1
    assert facts.mean == pytest.approx([unit.mean()], rel=1e-12)
    assert facts.std == pytest.approx([unit.std()], rel=1e-12)


def test_what_was_measured_is_kept_until_a_file_changes(tmp_path: Path, own_cache: Path) -> None:
    arrays = make(tmp_path / "f")
    params = FashionParams(source=str(tmp_path / "f"))
    first = params.facts()
    (kept,) = own_cache.rglob("*.json")
    assert params.facts() == first
    kept.write_text("{ cut")
    with pytest.warns(UserWarning, match="computed again"):
        assert params.facts() == first
    changed = arrays["t10k-images-idx3-ubyte.gz"].copy()
    changed[0, 0, 0] ^= 1
    path = tmp_path / "f" / "t10k-images-idx3-ubyte.gz"
    write(path, changed)
    os.utime(path, ns=(1, 1))
    assert params.facts().fingerprint != first.fingerprint


def test_a_cache_that_cannot_be_written_is_not_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path / "f")
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert FashionParams(source=str(tmp_path / "f")).facts().train_size == 30


def test_only_the_named_source_is_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SYSTEM", tmp_path / "none")
    assert code_of("system") == "SD-D300"
    assert code_of(str(tmp_path / "nowhere")) == "SD-D300"
    assert FashionParams().facts().source.startswith("embedded")
    make(tmp_path / "none")
    assert FashionParams(source="system").facts().train_size == 30


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    make(tmp_path / "f")
    (tmp_path / "f" / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(SdditError, match=r"missing t10k-labels-idx1-ubyte\.gz"):
        FashionParams(source=str(tmp_path / "f")).facts()


@pytest.mark.parametrize("keep", [0, 3, 10, 20, 200, 5000, -1])
def test_a_file_cut_short_is_refused(tmp_path: Path, keep: int) -> None:
    make(tmp_path / "f")
    path = tmp_path / "f" / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:keep])
    assert code_of(str(tmp_path / "f")) == "SD-D302"


def test_broken_files_are_refused(tmp_path: Path) -> None:
    arrays = make(tmp_path / "f")
    images, labels = tmp_path / "f" / "train-images-idx3-ubyte.gz", tmp_path / "f" / "train-labels-idx1-ubyte.gz"
    source = str(tmp_path / "f")

    images.write_bytes(b"no gzip at all")
    assert code_of(source) == "SD-D303"
    good = gzip.compress(struct.pack(">4I", 0x0803, 30, 28, 28) + arrays[images.name].tobytes())
    images.write_bytes(good[:-8] + bytes(4) + good[-4:])  # the checksum
    assert code_of(source) == "SD-D303"
    images.write_bytes(gzip.compress(struct.pack(">4I", 0x0801, 30, 28, 28) + arrays[images.name].tobytes()))
    assert code_of(source) == "SD-D302"
    images.write_bytes(gzip.compress(struct.pack(">4I", 0x0803, 29, 28, 28) + arrays[images.name].tobytes()))
    assert code_of(source) == "SD-D302"
    images.write_bytes(gzip.compress(struct.pack(">4I", 0x0803, 2**31, 2**10, 2**10)))
    assert code_of(source) == "SD-D302"
    write(images, arrays[images.name][:, :27])
    assert code_of(source) == "SD-D302"
    write(images, arrays[images.name][:29])
    assert code_of(source) == "SD-D302"
    write(images, arrays[images.name])
    write(labels, arrays[labels.name] + np.uint8(1))
    assert code_of(source) == "SD-D307"
    write(labels, arrays[labels.name])
    assert FashionParams(source=source).facts().train_size == 30
