"""Test TAEF2 with the published weights and with weights of the test, and the files that are refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import sddit
from sddit.errors import SdditError
from sddit.interfaces import files_sha256
from sddit.testing import check
from sddit_standard.codecs.params import TAEF2_FILES, Taef2Params, TinyKLParams
from sddit_standard.codecs.taef2_network import Block, SoftClamp, Taef2
from sddit_standard.codecs.tiny_network import CHANNELS, FACTOR, TinyKL

PUBLISHED = "5b286f9870ecbf65c9c8c144bfbde9e7c970121b91e066d5622b3e8ef59f7870"
"""`sha256sum taef2_decoder.pth taef2_encoder.pth | sha256sum` of madebyollin/taesd at 5cccb12."""


def psnr(one: Tensor, other: Tensor) -> float:
    """Return the peak signal-to-noise ratio of uint8 images in dB."""
    return float(-10 * ((one.float() - other.float()) / 255).square().mean().log10())


def smooth_images(count: int, side: int) -> Tensor:
    """Return coloured shapes with soft shades, uint8 [n, 3, H, W]."""
    rng = np.random.default_rng(3)
    y, x = np.mgrid[0:side, 0:side] / side
    images = []
    for _ in range(count):
        (cx, cy), radius, colours = rng.uniform(0.3, 0.7, 2), rng.uniform(0.15, 0.3), rng.uniform(0, 1, (2, 3, 1, 1))
        inside = ((x - cx) ** 2 + (y - cy) ** 2 < radius**2)[None]
        images.append(np.where(inside, colours[0] * (0.7 + 0.3 * y), colours[1] * (0.6 + 0.4 * x)))
    return torch.from_numpy((np.stack(images) * 255).round().astype(np.uint8))


@pytest.fixture
def random_files(tmp_path: Path) -> Path:
    """Weights of TAEF2 at random, in the two files."""
    torch.manual_seed(0)
    network = Taef2().half()
    for half, name in zip((network.encoder, network.decoder), TAEF2_FILES, strict=True):
        torch.save(half.state_dict(), tmp_path / name)
    return tmp_path


def test_the_published_weights_of_taef2_load_strictly_and_reconstruct(codec_files: Path) -> None:
    params = Taef2Params(path=str(codec_files)).fingerprinted()
    assert params.sha256 == PUBLISHED
    codec = sddit.build("codecs", "taef2", {"path": str(codec_files)}, device="cpu")
    images = smooth_images(8, 64)
    mean, std = codec.encode(images)
    assert mean.shape == (8, 32, 8, 8)
    assert float(std.abs().max()) == 0.0
    spread = mean.std(dim=(0, 2, 3))
    assert 0.2 < float(spread.min()) < float(spread.max()) < 2
    assert psnr(codec.decode(mean), images) > 30
    assert psnr(codec.decode(mean.roll(1, dims=1)), images) < 20  # the control
    assert sum(p.numel() for p in Taef2().encoder.parameters()) == 1_338_528
    assert sum(p.numel() for p in Taef2().decoder.parameters()) == 1_338_499


def test_taef2_conforms(random_files: Path) -> None:
    check("taef2", "codecs", path=str(random_files))


def test_images_of_taef2_are_in_the_unit_range(random_files: Path) -> None:
    assert Taef2Params(path=str(random_files)).facts().pixel_range == (0.0, 1.0)
    given = Taef2Params(path=str(random_files), scale=0.5, shift=0.25).facts()
    assert (given.scale, given.shift) == (0.5, 0.25)


def test_the_blocks_of_taef2_are_as_described() -> None:
    """An identity skip, ReLU after the sum; the wide branch is added first; latents are clamped to 3."""
    block, x = Block(normalized=True), torch.randn(2, 64, 4, 4)
    for parameter in block.parameters():
        torch.nn.init.zeros_(parameter)
    assert torch.equal(block(x), x.relu())
    assert not torch.equal(Block(normalized=True)(x), x.relu())  # the control
    assert torch.allclose(SoftClamp()(torch.tensor([0.01, 100.0, -100.0])), torch.tensor([0.01, 3.0, -3.0]), atol=1e-5)


Damage = Callable[[Path], object]


def cut(folder: Path) -> None:
    file = folder / TAEF2_FILES[1]
    file.write_bytes(file.read_bytes()[:1000])


def rename_a_tensor(folder: Path) -> None:
    state = torch.load(folder / TAEF2_FILES[0], weights_only=True)
    state["1.conv.0.wait"] = state.pop("1.conv.0.weight")
    torch.save(state, folder / TAEF2_FILES[0])


def reshape_a_tensor(folder: Path) -> None:
    state = torch.load(folder / TAEF2_FILES[0], weights_only=True)
    state["14.weight"] = state["14.weight"][:16]
    torch.save(state, folder / TAEF2_FILES[0])


def make_infinite(folder: Path) -> None:
    state = torch.load(folder / TAEF2_FILES[0], weights_only=True)
    state["0.bias"][3] = torch.inf
    torch.save(state, folder / TAEF2_FILES[0])


def swap(folder: Path) -> None:
    one, other = (folder / name for name in TAEF2_FILES)
    first = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(first)


@pytest.mark.parametrize(
    ("damage", "part"),
    [
        (lambda folder: (folder / TAEF2_FILES[0]).unlink(), "not there"),
        (cut, "truncated"),
        (rename_a_tensor, "no 1.conv.0.weight, and 1 more differences"),
        (reshape_a_tensor, r"14.weight \(16, 64, 3, 3\)"),
        (make_infinite, "NaN or infinity"),
        (swap, "not the weights of the codec"),
        (lambda folder: (folder / TAEF2_FILES[0]).write_text("hello"), "torch.save"),
    ],
    ids=["missing", "cut", "renamed", "reshaped", "infinite", "swapped", "text"],
)
def test_unusable_weights_are_refused(random_files: Path, damage: Damage, part: str) -> None:
    sddit.build("codecs", "taef2", {"path": str(random_files)}, device="cpu")  # the control
    damage(random_files)
    with pytest.raises(SdditError, match=part) as caught:
        sddit.build("codecs", "taef2", {"path": str(random_files)}, device="cpu")
    assert [problem.code for problem in caught.value.problems] == ["SD-D351"]


def test_tiny_kl_conforms_and_is_small() -> None:
    check("tiny_kl", "codecs")
    (file,) = TinyKLParams().weight_files()
    assert file.stat().st_size < 2_000_000
    assert TinyKLParams().fingerprinted().sha256 == files_sha256([file])


def test_tiny_kl_reconstructs_and_its_posterior_is_narrow() -> None:
    codec = sddit.build("codecs", "tiny_kl", device="cpu")
    images = smooth_images(8, 64)
    mean, std = codec.encode(images)
    assert mean.shape == (8, CHANNELS, 64 // FACTOR, 64 // FACTOR)
    assert 0 < float(std.min()) < float(std.max()) < float(mean.std())
    assert psnr(codec.decode(mean), images) > 24
    assert psnr(codec.decode(mean.roll(1, dims=1)), images) < 18  # the control
    other = codec.decode(codec.encode(smooth_images(2, 32))[0])
    assert other.shape == (2, 3, 32, 32), "any multiple of 8"


def test_the_facts_of_tiny_kl_are_those_of_its_network() -> None:
    facts = TinyKLParams().facts()
    mean, log_variance = TinyKL().encode(torch.zeros(1, 3, 16, 24))
    assert mean.shape[1:] == log_variance.shape[1:] == facts.latent_shape((3, 16, 24))
    assert TinyKL().decode(mean).shape[1:] == facts.image_shape(tuple(mean.shape[1:]))
