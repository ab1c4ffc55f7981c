"""Copies are found where there are some, and not where there are none."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from sddit.errors import SdditError
from sddit.evaluation.copies import PAIRS, copies_of_run, find_copies, pairs_image
from sddit.evaluation.metrics import copied_fraction, nearest
from sddit.evaluation.sample_images import kept_samples
from sddit.evaluation.thumbnails import PixelFeatures
from sddit.interfaces import DataFacts
from sddit.progress import Progress
from sddit.recipes.resolve import resolve
from sddit.runs.pipeline import run

CPU = torch.device("cpu")
SIDE = 8


class Blobs:
    """Random images; `first` moves the stream on, so that two splits share none."""

    def __init__(self, first: int, count: int) -> None:
        rng = np.random.default_rng(first)
        self.images = torch.from_numpy(rng.integers(0, 256, (count, 3, SIDE, SIDE))).to(torch.uint8)
        self.facts = DataFacts((3, SIDE, SIDE), (), count, count, "blobs", (0.0,) * 3, (1.0,) * 3, "made up")

    def __len__(self) -> int:
        return len(self.images)

    def fetch(self, ids) -> tuple[Tensor, Tensor]:
        index = torch.as_tensor(list(ids))
        return self.images[index].float(), torch.zeros(len(index), dtype=torch.int64)

    def to_images(self, x: Tensor) -> Tensor:
        return x.to(torch.uint8)


TRAIN, TEST = Blobs(0, 120), Blobs(1, 60)


def test_nearest_is_the_nearest() -> None:
    rng = np.random.default_rng(0)
    points, reference = rng.normal(size=(300, 5)) + 100, rng.normal(size=(40, 5)) + 100
    index, distance = nearest(points, reference)
    expected = np.linalg.norm(points[:, None] - reference[None], axis=2)
    assert index.tolist() == expected.argmin(axis=1).tolist()
    assert distance == pytest.approx(expected.min(axis=1), rel=1e-12)
    assert nearest(reference[5:7], reference)[0].tolist() == [5, 6]
    assert nearest(reference[5:7], reference)[1].tolist() == [0, 0]


def test_the_fraction_of_copies_by_hand() -> None:
    unseen = np.arange(1.0, 101.0)
    assert copied_fraction(unseen, unseen) == (0.05, 0.05)
    assert copied_fraction([0.0, 0.0, 50.0, 99.0], unseen) == (0.5, 0.05)
    assert copied_fraction([50.0, 99.0], unseen) == (0.0, 0.05)
    duplicates = np.where(unseen < 21, 0.0, unseen)  # held-out images that are in the training split as well
    assert copied_fraction([0.0, 30.0], duplicates) == (0.5, 0.2)


def test_planted_copies_are_found_and_paired() -> None:
    samples = Blobs(2, 100).images
    planted = torch.cat([samples[:70], TRAIN.images[10:40]])
    viewers = {"pixels": PixelFeatures(CPU)}
    honest = find_copies([samples], TRAIN, TEST, viewers, 32)["pixels"]
    found = find_copies([planted[:60], planted[60:]], TRAIN, TEST, viewers, 17)["pixels"]
    assert honest.floor == found.floor == 0.05
    assert honest.share < 0.15
    assert found.share == pytest.approx(0.3 + 0.7 * honest.share, abs=0.05)
    assert found.pairs == tuple((70 + i, 10 + i, 0.0) for i in range(PAIRS))
    distances = [distance for *_, distance in honest.pairs]
    assert distances == sorted(distances)
    assert distances[0] > 0
    slightly = planted.clone()
    slightly[70:] = (slightly[70:].int() + 1).clamp(max=255).to(torch.uint8)
    assert find_copies([slightly], TRAIN, TEST, viewers, 17)["pixels"].share == found.share
    above = planted[[sample for sample, _, _ in found.pairs]]
    image = Image.open(io.BytesIO(pairs_image(found, above, TRAIN)))
    cells = np.asarray(image)
    first = cells[10:58, -58:-10]  # the last pair, sample above and training image below
    assert np.array_equal(first, cells[10 + 51 : 58 + 51, -58:-10])
    assert first.std() > 10


def test_a_run_is_searched_in_every_view(toy_recipe: Path, tmp_path: Path) -> None:
    recipe = resolve(toy_recipe, ['evaluate.features=["toy"]', "evaluate.samples=24"])
    folder = run(recipe, out=tmp_path / "runs", device="cpu", progress=Progress()).folder
    found = copies_of_run(folder, device="cpu", progress=Progress())
    assert list(found) == ["toy", "pixels"]
    for label in found:
        with Image.open(folder / f"samples/copies-{label}.png") as image:
            assert image.width > 100
    assert (folder / "copies.json").is_file()


def test_a_run_without_samples_says_so(toy_recipe: Path, tmp_path: Path) -> None:
    with pytest.raises(SdditError, match="SD-C445"):
        copies_of_run(tmp_path, device="cpu", progress=Progress())
    folder = run(resolve(toy_recipe), out=tmp_path / "runs", device="cpu", progress=Progress()).folder
    (folder / "samples/samples.npz").unlink()
    with pytest.raises(SdditError, match="SD-T930"):
        copies_of_run(folder, device="cpu", progress=Progress())


def test_samples_are_kept_as_the_adm_evaluator_reads_them(toy_recipe: Path, tmp_path: Path) -> None:
    """A zip whose `arr_0.npy` is uint8 [n, H, W, 3] in C order."""
    recipe = resolve(toy_recipe, ["evaluate.samples=6"])
    folder = run(recipe, out=tmp_path / "runs", device="cpu", progress=Progress()).folder
    with zipfile.ZipFile(folder / "samples/samples.npz") as archive, archive.open("arr_0.npy") as member:
        version = np.lib.format.read_magic(member)
        assert version == (1, 0)
        assert np.lib.format.read_array_header_1_0(member) == ((6, 8, 8, 3), False, np.dtype("uint8"))
    kept = kept_samples(folder)
    assert kept.shape == (6, 8, 8, 3)
    images = kept.rows(range(6))
    assert np.array_equal(images[..., 0], images[..., 2])  # grey
