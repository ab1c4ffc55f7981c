"""Test references of images in a folder: their figures are those of the images themselves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from sddit.data.archives import StoredArray, load_arrays
from sddit.data.references import ENTRY, ReferenceRecord, read_reference_file, record_array
from sddit.errors import SdditError
from sddit.evaluation.reference import STATED, RealImages
from sddit.interfaces import CheckContext, file_sha256
from sddit.progress import Progress
from sddit.recipes.image_source import dataset_of
from sddit.recipes.resolve import resolve
from sddit.verify.published import folders, published
from sddit_standard.checks import inception_weights, made_up_images
from sddit_standard.features import adm
from sddit_standard.features.adm import InceptionFeatures, read_reference, score_samples
from sddit_standard.features.inception import Inception, Seen

CPU = torch.device("cpu")


def drawn(count: int, seed: int, side: int = 12) -> Tensor:
    return torch.randint(0, 256, (count, 3, side, side), generator=torch.Generator().manual_seed(seed)).to(torch.uint8)


def write_folder(folder: Path, images: Tensor) -> None:
    """Write images as files in two class folders."""
    for number, image in enumerate(images):
        place = folder / f"class{number % 2}"
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(place / f"{number:03}.png")


def write_array(path: Path, images: Tensor) -> StoredArray:
    np.savez(path, arr_0=images.permute(0, 2, 3, 1).numpy())
    found = StoredArray.find(path, "arr_0")
    assert found is not None
    return found


@pytest.fixture
def glance(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace the network by a few sums of pixels."""

    def seen(_: Any, images: Tensor, device: torch.device) -> Seen:
        pixels = images.float().flatten(1) / 255
        sums = pixels @ torch.randn(pixels.shape[1], 12, generator=torch.Generator().manual_seed(0))
        return Seen(sums[:, :6], sums[:, 6:9], sums[:, 9:].softmax(dim=1))

    monkeypatch.setattr(adm, "look", seen)
    monkeypatch.setattr(adm, "load_inception", lambda path, device: (None, file_sha256(path)))
    monkeypatch.setattr(adm, "POOLED", 6)
    monkeypatch.setattr(adm, "PLACES", 3)


@pytest.mark.usefixtures("glance")
def test_a_reference_of_a_folder_gives_the_figures_of_its_images(sddit_run: Any, tmp_path: Path) -> None:
    real = drawn(75, seed=1)
    write_folder(tmp_path / "real", real)
    (tmp_path / "w.pth").write_bytes(b"weights")
    made = sddit_run("reference", "real", "real.npz", "--size", 12, "--inception", "w.pth", "--json")
    assert made.status == 0, made.stderr
    record = json.loads(made.stdout)
    assert (record["images"], record["height"], record["width"], record["crop"]) == (75, 12, 12, "adm")
    assert record["files"] == {"inception": file_sha256(tmp_path / "w.pth")}
    assert set(np.load("real.npz", allow_pickle=False)) == {"mu", "sigma", "mu_s", "sigma_s", ENTRY}

    samples = write_array(tmp_path / "samples.npz", drawn(40, seed=2))
    write_array(tmp_path / "images.npz", real)
    write_array(tmp_path / "fewer.npz", real[1:])

    def figures(reference: str) -> dict[str, Any]:
        paths = {"inception": tmp_path / "w.pth", "reference": tmp_path / reference}
        return score_samples(samples, **paths, device=CPU, progress=Progress())

    by_folder, by_images, fewer = figures("real.npz"), figures("images.npz"), figures("fewer.npz")
    for name in ("fid", "sfid"):
        assert by_folder[name] == pytest.approx(by_images[name], rel=1e-9)
        assert by_folder[name] != pytest.approx(fewer[name], rel=1e-6)
    assert by_folder["precision"] is None  # needs the images


@pytest.mark.usefixtures("glance")
def test_a_reference_needs_a_size_and_two_images(sddit_run: Any, tmp_path: Path) -> None:
    write_folder(tmp_path / "real", drawn(1, seed=1))
    (tmp_path / "w.pth").write_bytes(b"weights")
    no_size = sddit_run("reference", "real", "real.npz", "--inception", "w.pth")
    assert (no_size.status, "--size 256" in no_size.stderr) == (2, True)
    alone = sddit_run("reference", "real", "real.npz", "--size", 12, "--inception", "w.pth")
    assert "SD-T906" in alone.stderr
    misspelt = sddit_run("reference", "real", "real.npz", "--size", 12, "dataset.bitz=8", "--inception", "w.pth")
    assert "did you mean 'bits'" in misspelt.stderr
    assert not (tmp_path / "real.npz").exists()


def test_images_are_not_kept_in_memory(tmp_path: Path) -> None:
    write_folder(tmp_path, drawn(10, seed=1))
    images = RealImages(dataset_of(tmp_path, {"size": 12}, stated=STATED), 4, Progress())
    assert [len(part) for part in images] == [4, 4, 2]
    assert not images.dataset._kept  # type: ignore[union-attr]
    assert images.dataset is not None
    images.dataset.fetch([3])
    assert not images.dataset._kept  # type: ignore[attr-defined]


def write_reference(path: Path, **changes: Any) -> None:
    """Write a reference whose statistics do not matter."""
    stated = {"version": "0", "images": 9, "height": 8, "width": 8, "crop": "", "source": "x", "split": "train"}
    record = ReferenceRecord(**{**stated, "fingerprint": "0", "files": {}, **changes})
    np.savez(path, mu=np.zeros(2048), sigma=np.eye(2048, dtype=np.float32), **{ENTRY: record_array(record)})


def test_a_recipe_with_a_reference_of_other_images_is_refused(toy_recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "w.pth").write_bytes(b"weights")
    table = f'{{ name = "inception", weights = "{tmp_path}/w.pth", reference = "{tmp_path}/r.npz" }}'
    asked = (f"features.fid={table}", 'evaluate.features=["fid"]')
    _, height, width = resolve(toy_recipe).facts.image
    fits = {"height": height, "width": width, "files": {"inception": file_sha256(tmp_path / "w.pth")}}
    write_reference(tmp_path / "r.npz", **fits)
    assert any("not compared, since r.npz" in text for text in resolve(toy_recipe, asked).warnings)
    for changes in ({"height": height + 1}, {"files": {"inception": "0" * 64}}):
        write_reference(tmp_path / "r.npz", **fits | changes)
        with pytest.raises(SdditError, match="SD-T942") as refused:
            resolve(toy_recipe, asked)
        assert "features.fid.reference" in refused.value.problems[0].where


@pytest.mark.usefixtures("glance")
def test_samples_of_another_size_are_refused_when_they_are_seen(tmp_path: Path) -> None:
    """Of latents, the size of the samples is known when they are decoded."""
    write_array(tmp_path / "r.npz", drawn(9, seed=1))
    collected = InceptionFeatures(Inception(), read_reference(tmp_path / "r.npz"), "r.npz", CPU).collect_figures()
    collected.add(drawn(5, seed=2))
    with pytest.raises(SdditError, match="SD-T942"):
        collected.add(drawn(5, seed=2, side=16))


@pytest.mark.slow
def test_figures_are_the_published_ones(sddit_run: Any, tmp_path: Path) -> None:
    """Two sets of images, scored from files: against the reference of a folder, and against the images."""
    stored = published(CheckContext(fixtures=folders(None)), "inception_a")
    real, fake = (made_up_images(stored.meta["sets"][name]) for name in ("real", "fake"))
    weights = inception_weights(stored.meta) | {name: value.float() for name, value in stored.state.items()}
    save_file(weights, tmp_path / "w.safetensors")
    write_folder(tmp_path / "real", real)
    assert sddit_run("reference", "real", "real.npz", "--size", 64, "--inception", "w.safetensors").status == 0
    samples = write_array(tmp_path / "samples.npz", fake)
    write_array(tmp_path / "images.npz", real)
    for reference in ("real.npz", "images.npz"):
        paths = {"inception": tmp_path / "w.safetensors", "reference": tmp_path / reference}
        found = score_samples(samples, **paths, device=CPU, progress=Progress())
        expected = {
            name.removeprefix("figures/"): float(value)
            for name, value in stored.outputs.items()
            if name.startswith("figures/")
        }
        assert found["fid"] == pytest.approx(expected["fid"], rel=1e-5)
        assert found["sfid"] == pytest.approx(expected["sfid"], rel=1e-5)
        assert found["inception_score"] == pytest.approx(expected["inception_score"], rel=1e-5)
        assert found["inception_score"] != pytest.approx(expected["inception_score_with_bias"], rel=1e-3)
        if reference == "images.npz":
            assert (found["precision"], found["recall"]) == (expected["precision"], expected["recall"])
    held = load_arrays(tmp_path / "real.npz", ["mu"])
    np.testing.assert_allclose(held["mu"], stored.outputs["real/pooled"].numpy().mean(axis=0), rtol=1e-4)
    assert read_reference_file(tmp_path / "real.npz").size == (64, 64)
