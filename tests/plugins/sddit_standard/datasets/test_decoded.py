"""Latents with a codec: samples are decoded wherever images are looked at, and compared with the images themselves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import sddit
from sddit import generation
from sddit.data.codec_record import record_of
from sddit.data.latent_writing import write_cache
from sddit.data.latents import ImageSource
from sddit.errors import SdditError
from sddit.evaluation.copies import copies_of_run
from sddit.evaluation.scoring import read_scores
from sddit.interfaces import Selected
from sddit.plugins.host import Host
from sddit.progress import Progress
from sddit.recipes.real_images import real_images
from sddit.recipes.resolve import resolve
from sddit.runs.pipeline import RunResult, evaluate_run, run
from sddit.testing.toys.plugin import TOY_RECIPE

SIDE = 8  # of the toy codec's squares
SMALL = '\n[evaluate]\nsamples = 24\npreviews = 0\nper_class = 2\nfeatures = ["toy"]\nneighbours = 2\n'


def write(folder: Path, host: Host, name: str, side: int, *, known: bool = True, **settings: Any) -> Path:
    """Encode both splits of a data set with the toy codec."""
    dataset, toy = host.registries.datasets.get(name), host.registries.codecs.get("toy")
    params, codec = dataset.params(**settings), Selected(toy, toy.params(side=side))
    facts, encoder = params.facts(), codec.build(device=torch.device("cpu"))
    shards = []
    for split in ("train", "test"):
        data = dataset.build(params, split=split)
        x, labels = data.fetch(range(len(data)))
        shards.append((torch.cat(encoder.encode(data.to_images(x)), dim=1).numpy(), labels.numpy()))
    images = ImageSource(
        dataset=f"sddit/{name}",
        settings=settings,
        fingerprint=facts.fingerprint,
        domain=facts.domain,
        train=facts.train_size,
        test=facts.test_size,
    )
    return write_cache(
        folder,
        shards,
        layout="mean+std",
        scale=1.0,
        encoder="toy",
        class_names=facts.class_names,
        codec=record_of(codec),
        images=images if known else None,
        allow_implausible=True,
    ).parent


@pytest.fixture
def cache(tmp_path: Path, toys: Host) -> Path:
    """Emoji at 64 pixels."""
    return write(tmp_path / "latents", toys, "emoji", SIDE, size=64)


def recipe_of(folder: Path, cache: Path, side: int) -> Path:
    """Write a recipe of toys on cached latents and their codec."""
    tables = f'[codec]\nname = "toy"\nside = {side}\n[dataset]\nname = "latents"\npath = "{cache}"'
    path = folder / "latent.toml"
    path.write_text(TOY_RECIPE.replace('[dataset]\nname = "toy"', tables) + SMALL)
    return path


@pytest.fixture
def recipe_file(tmp_path: Path, cache: Path) -> Path:
    return recipe_of(tmp_path, cache, SIDE)


def go(path: Path, out: Path, *overrides: str) -> RunResult:
    return run(resolve(path, overrides), out=out, device="cpu", progress=Progress())


def test_the_cache_keeps_the_split_of_its_images(recipe_file: Path) -> None:
    recipe = resolve(recipe_file)
    assert (recipe.facts.train_size, recipe.facts.test_size) == (1476, 160)
    assert recipe.facts.gives_images
    latents, images = (chosen.build(split="test") for chosen in (recipe.dataset, real_images(recipe)))
    assert torch.equal(latents.fetch(range(9))[1], images.fetch(range(9))[1])
    shown = images.to_images(images.fetch(range(9))[0])
    decoded = recipe.codec.build(device=torch.device("cpu"), facts=recipe.facts).decode(latents.fetch(range(9))[0])
    assert (decoded.float().mean(dim=(2, 3)) - shown.float().mean(dim=(2, 3))).abs().max() < 1
    assert (decoded.float().mean(dim=(2, 3)) - shown.roll(1, 0).float().mean(dim=(2, 3))).abs().max() > 1


def test_a_run_decodes_its_samples_and_scores_them(
    recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = go(recipe_file, tmp_path / "runs", "evaluate.previews=1", "evaluate.during=1")
    folder = ended.folder
    with np.load(folder / "samples/samples.npz") as held:
        images, labels = held["arr_0"], held["arr_1"]
    assert images.shape == (24, 64, 64, 3)
    squares = images.reshape(24, SIDE, 8, SIDE, 8, 3)
    assert (squares == squares[:, :, :1, :, :1]).all(), "the toy codec draws squares of one colour"
    latents = load_file(folder / "samples/latents.safetensors")
    assert latents["latents"].shape == (24, 3, 8, 8)
    assert latents["labels"].tolist() == labels.tolist()
    drawn = ((latents["latents"].float() + 1) * 127.5).clamp(0, 255)
    assert np.abs(squares[:, :, 0, :, 0].transpose(0, 3, 1, 2) - drawn.numpy()).max() <= 1
    with Image.open(folder / "samples/step-000004.png") as preview:
        assert preview.height > 8 * 64
    (score,) = ended.scores.values()
    assert score.training == 1476
    assert score.fd_codec is not None and score.fd_codec != score.fd_floor
    assert read_scores(folder) == ended.scores == evaluate_run(folder, device="cpu", progress=Progress())
    assert "of the codec" in (folder / "report.html").read_text()
    assert "not an image" not in (folder / "report.html").read_text()
    assert set(copies_of_run(folder, device="cpu", progress=Progress())) == {"toy", "pixels"}
    model = sddit.load(folder)
    one = sddit.sample(model, classes=[1], per_class=2)
    assert one.shape == (2, 3, 64, 64)
    assert torch.equal(one[0].permute(1, 2, 0), torch.from_numpy(images[1]))
    assert sddit.sample(model, classes=[1], per_class=2, latents=True).shape == (2, 3, 8, 8)
    monkeypatch.setattr(generation, "PART_BYTES", 1)
    parts = go(recipe_file, tmp_path / "parts", "evaluate.batch=5", "evaluate.previews=1", "evaluate.during=1")
    assert (parts.folder / "samples/latents.safetensors").is_file()


def test_reconstructions_have_the_floor_of_a_perfect_model(recipe_file: Path, tmp_path: Path) -> None:
    """Squares of one colour keep the mean that the toy features have, and lose the standard deviation."""
    (score,) = go(recipe_file, tmp_path / "runs").scores.values()
    assert score.fd_codec is not None
    assert score.fd_floor < score.fd_codec < score.fd


def test_moved_images_are_named_again(tmp_path: Path, toys: Host) -> None:
    images, noise = tmp_path / "images", np.random.default_rng(0)
    for number in range(30):
        path = images / "abc"[number % 3] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(path)
    cache = write(tmp_path / "latents", toys, "folder", 2, path=str(images), size=16, holdout=0.4)
    path = recipe_of(tmp_path, cache, 2)
    recipe = resolve(path)
    images.rename(tmp_path / "moved")
    with pytest.raises(SdditError, match=r"SD-D300(.|\n)*\(dataset.images\)(.|\n)*dataset.images ?= ?PATH"):
        resolve(path)
    moved = resolve(path, [f"dataset.images={tmp_path / 'moved'}"])
    assert moved.run_id == recipe.run_id
    assert real_images(moved).params.path == str(tmp_path / "moved")
    next((tmp_path / "moved").rglob("*.png")).unlink()
    with pytest.raises(SdditError, match="SD-D354"):
        resolve(path, [f"dataset.images={tmp_path / 'moved'}"])


def test_what_cannot_be_compared_is_refused(recipe_file: Path, tmp_path: Path, toys: Host, cache: Path) -> None:
    with pytest.raises(SdditError, match="SD-T912"):
        resolve(recipe_file, ["codec=false"])
    write(tmp_path / "plain", toys, "emoji", SIDE, known=False, size=64)
    plain = [f"dataset.path={tmp_path / 'plain'}", "dataset.holdout=0.1"]
    with pytest.raises(SdditError, match="SD-T944"):
        resolve(recipe_file, plain)
    assert resolve(recipe_file, [*plain, "evaluate.features=[]"]).facts.gives_images
    index = json.loads((cache / "latents.json").read_text())
    index["images"]["fingerprint"] = "0" * 64
    (cache / "latents.json").write_text(json.dumps(index))
    with pytest.raises(SdditError, match="SD-D354"):
        resolve(recipe_file)
    index["images"]["train"] += 1
    (cache / "latents.json").write_text(json.dumps(index))
    with pytest.raises(SdditError, match="SD-D341"):
        resolve(recipe_file)
