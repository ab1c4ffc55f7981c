"""Test what a codec refuses, its shapes, and networks that run in chunks."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import sddit
from sddit.data.codecs import as_images, check_images, check_latents, in_unit_range, run_in_chunks
from sddit.errors import SdditError
from sddit.interfaces import CodecFacts
from sddit.plugins.host import Host

FACTS = CodecFacts(channels=4, factor=8)
FIXED = CodecFacts(channels=4, factor=8, size=32)
CPU = torch.device("cpu")


def images(*shape: int) -> Tensor:
    return torch.zeros(shape, dtype=torch.uint8)


def test_shapes_follow_from_the_factor() -> None:
    assert FACTS.latent_shape((3, 32, 64)) == (4, 4, 8) == check_images(images(2, 3, 32, 64), FACTS)
    assert FACTS.image_shape((4, 4, 8)) == (3, 32, 64) == check_latents(torch.zeros(2, 4, 4, 8), FACTS)
    assert FIXED.latent_shape((3, 32, 32)) == (4, 4, 4)
    assert FIXED.image_shape((4, 4, 4)) == (3, 32, 32)


@pytest.mark.parametrize(
    ("facts", "given", "part"),
    [
        (FACTS, images(2, 3, 36, 32), "multiples of 8"),
        (FACTS, images(2, 3, 0, 0), "multiples of 8"),
        (FACTS, images(2, 1, 32, 32), "repeat a grey image to three channels"),
        (FACTS, images(3, 32, 32), "uint8 [B, 3, H, W]"),
        (FACTS, torch.zeros(2, 3, 32, 32), "uint8 [B, 3, H, W]"),
        (FIXED, images(2, 3, 64, 64), "height and width 32"),
    ],
)
def test_what_a_codec_does_not_take_is_refused(facts: CodecFacts, given: Tensor, part: str) -> None:
    with pytest.raises(SdditError) as caught:
        check_images(given, facts)
    assert caught.value.problems[0].code == "SD-D353"
    assert part in str(caught.value)


@pytest.mark.parametrize(
    ("facts", "given", "part"),
    [
        (FACTS, torch.zeros(2, 3, 4, 4), "C = 4"),
        (FACTS, torch.zeros(2, 4, 4, 4, dtype=torch.int64), "floats [B, C, h, w]"),
        (FACTS, torch.full((2, 4, 4, 4), torch.inf), "128 of 128 numbers are NaN or infinite"),
        (FIXED, torch.zeros(2, 4, 8, 8), "h = w = 4"),
    ],
)
def test_latents_that_a_codec_does_not_take_are_refused(facts: CodecFacts, given: Tensor, part: str) -> None:
    with pytest.raises(SdditError) as caught:
        check_latents(given, facts)
    assert caught.value.problems[0].code == "SD-D353"
    assert part in str(caught.value)


@pytest.mark.parametrize("pixel_range", [(-1.0, 1.0), (0.0, 1.0)])
def test_pixels_survive_the_range_of_a_network(pixel_range: tuple[float, float]) -> None:
    levels = torch.arange(256, dtype=torch.uint8)
    inside = in_unit_range(levels, pixel_range)
    assert (inside.min(), inside.max()) == pixel_range
    assert torch.equal(as_images(inside, pixel_range), levels)
    assert as_images(torch.tensor([-9.0, 9.0]), pixel_range).tolist() == [0, 255]


@pytest.mark.parametrize("count", [0, 1, 15, 16, 17, 40])
def test_every_chunk_has_one_size_and_results_are_those_of_the_whole(count: int) -> None:
    sizes = []

    def network(x: Tensor) -> tuple[Tensor, ...]:
        sizes.append(len(x))
        return x * 2, x.sum(dim=(1, 2, 3))

    x = torch.arange(count * 3.0).reshape(count, 3, 1, 1)
    double, total = run_in_chunks(network, x, CPU, (3, 64, 64))
    assert set(sizes) == {16}
    assert torch.equal(double, 2 * x)
    assert torch.equal(total, x.sum(dim=(1, 2, 3)))


def test_a_large_image_is_a_chunk_of_its_own() -> None:
    sizes = []
    run_in_chunks(lambda x: (sizes.append(len(x)) or x,), torch.zeros(3, 1), CPU, (3, 1024, 1024))  # type: ignore[func-returns-value]
    assert sizes == [1, 1, 1]


def test_float32_is_not_rounded_on_a_gpu() -> None:
    """cuDNN's default is TF32, which a network of a codec must not be computed in."""
    seen = []

    def network(x: Tensor) -> tuple[Tensor]:
        seen.append(torch.backends.cudnn.allow_tf32)
        return (x,)

    run_in_chunks(network, torch.zeros(1, 3, 8, 8), torch.device("cpu"), (3, 8, 8))
    assert (seen, torch.backends.cudnn.allow_tf32) == ([False], True)


def test_a_codec_is_built_from_python(toys: Host) -> None:
    codec = sddit.build("codecs", "toy", {"side": 4}, device="cpu")
    mean, std = codec.encode(torch.full((2, 3, 8, 8), 255, dtype=torch.uint8))
    assert torch.equal(mean, torch.ones(2, 3, 2, 2))
    assert torch.equal(codec.decode(mean), torch.full((2, 3, 8, 8), 255, dtype=torch.uint8))
    assert bool((std > 0).all())
    with pytest.raises(SdditError, match=r"SD-T926(.|\n)*device"):
        sddit.build("codecs", "toy")
    with pytest.raises(SdditError, match=r"SD-P230|SD-R162"):
        sddit.build("codecs", "toy", device="cuda:99")
