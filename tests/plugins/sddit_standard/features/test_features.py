"""Test the shipped extractors: the right network, intact weights, features that depend only on the image."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn import functional as F

import sddit
from sddit.errors import SdditError
from sddit.evaluation.thumbnails import CHUNK
from sddit.interfaces import FeatureExtractor
from sddit_standard.datasets.image_datasets import ImageSplit, digits, emoji, fashion
from sddit_standard.datasets.params import DigitsParams, EmojiParams, FashionParams
from sddit_standard.features.classifier import ClassCNN, ColourCNN
from sddit_standard.features.extractors import (
    ASSETS,
    ClassifierFeatures,
    MobileNetFeatures,
    classifier,
    mobilenet,
    pixels,
)
from sddit_standard.features.mobilenet import MobileNetV2
from sddit_standard.features.params import ClassifierParams, MobilenetParams, PixelsParams

CPU = torch.device("cpu")
NAMES = ("digits", "fashion", "emoji")

# channels 0, 16, ... 80 of the images of `drawn`
PUBLISHED = [
    [0.170410, -0.571252, 0.638828, 0.044382, 0.274144, 0.622014],
    [-0.144861, -0.354449, 0.638930, 0.081240, 0.296852, 0.280793],
    [-0.391193, -0.165543, 0.950129, -0.098942, 0.053281, -0.780579],
    [-0.722971, -0.280956, -0.232630, 0.227391, -0.409987, 0.203838],
]


def split(name: str, part: str) -> ImageSplit:
    if name == "digits":
        return digits(DigitsParams(), split=part)
    if name == "emoji":
        return emoji(EmojiParams(), split=part)
    return fashion(FashionParams(), split=part)


def images_of(name: str, part: str, count: int) -> tuple[Tensor, Tensor]:
    """Evenly spaced images, uint8 [count, 3, H, W], and their labels."""
    data = split(name, part)
    x, labels = data.fetch([i * len(data) // count for i in range(count)])
    return data.to_images(x), labels


def extractors(name: str) -> list[FeatureExtractor]:
    facts = split(name, "test").facts
    return [
        mobilenet(MobilenetParams(), facts=facts, device=CPU),
        classifier(ClassifierParams(), facts=facts, device=CPU),
        pixels(PixelsParams(), facts=facts, device=CPU),
    ]


def test_the_trunk_is_that_of_the_paper() -> None:
    network = MobileNetV2()
    assert network(torch.zeros(1, 3, 64, 96)).shape == (1, 96, 4, 6)
    # table 2 of arXiv:1801.04381, rows of c = 16 to 96: (expansion, channels, repeats, stride)
    table = [(1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1)]
    weights, width = 32 * 3 * 9 + 32, 32
    for expansion, channels, repeats, _ in table:
        for _ in range(repeats):
            hidden = width * expansion
            expand = width * hidden + hidden if expansion > 1 else 0
            weights += expand + hidden * 9 + hidden + hidden * channels + channels
            width = channels
    assert sum(p.numel() for p in network.parameters()) == weights
    strides = [m.stride[0] for m in network.modules() if isinstance(m, nn.Conv2d) and m.groups > 1]
    assert strides == [s if i == 0 else 1 for _, _, repeats, s in table for i in range(repeats)]


def test_the_weights_are_torchvision_s() -> None:
    with safe_open(ASSETS / "mobilenetv2.safetensors", "pt") as file:
        assert "b03531047ffacf1e" in file.metadata()["source"]
        assert {file.get_tensor(key).dtype for key in file.keys()} == {torch.float16}  # noqa: SIM118  (no mapping)
    # Of four images drawn here, features computed in float64 from the published file with its batch norms unfolded
    published = torch.tensor(PUBLISHED)
    extractor = MobileNetFeatures(CPU)

    def error(images: Tensor) -> Tensor:
        """Relative, one number per image."""
        difference = extractor.features(images)[:, ::16] - published
        return difference.norm(dim=1) / published.norm(dim=1)

    convolutions = sum(isinstance(module, nn.Conv2d) for module in MobileNetV2().modules())
    rounding = convolutions * 2**-11  # each stored weight is off by 2^-11 of itself at most, and errors add up by layer
    assert error(drawn()).max() < rounding
    assert error(drawn().flip(1))[:3].min() > rounding  # red and blue exchanged
    assert error(drawn() // 2).min() > rounding


def drawn() -> Tensor:
    """Four images of 64x64 that need no file: two ramps, a disc and a chequerboard."""
    y, x = torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij")
    disc = ((x - 32) ** 2 + (y - 32) ** 2 < 400) * 255
    board = ((x // 8 + y // 8) % 2) * 255
    rows = [(x * 4, y * 4, x * 0), (y * 4, y * 2, x * 2), (disc, disc // 2, disc * 0), (board, board, board)]
    return torch.stack([torch.stack(row) for row in rows]).to(torch.uint8)


@pytest.mark.parametrize("name", NAMES)
def test_the_classifiers_are_as_accurate_as_their_papers_say(name: str) -> None:
    known = json.loads((ASSETS / f"classifier_{name}.json").read_text())
    data = split(name, "test")
    assert known["data"] == data.facts.fingerprint
    x, labels = data.fetch(range(len(data)))
    seen = ClassifierFeatures(name, CPU).classes(data.to_images(x))
    accuracy = (seen == labels).double().mean().item()
    assert accuracy == pytest.approx(known["test_accuracy"], abs=6e-4)
    assert accuracy >= {"digits": 0.98, "fashion": 0.88, "emoji": 0.6}[name]
    assert (seen == labels.flip(0)).double().mean().item() < 0.3


@pytest.mark.parametrize("name", NAMES)
def test_classifier_features_are_standardised(name: str) -> None:
    images, _ = images_of(name, "train", 1400)
    std, mean = torch.std_mean(ClassifierFeatures(name, CPU).features(images), dim=0)
    torch.testing.assert_close(mean, torch.zeros(64), atol=0.12, rtol=0)
    torch.testing.assert_close(std, torch.ones(64), atol=0.12, rtol=0)


@pytest.mark.parametrize("name", NAMES)
def test_features_depend_on_the_image_alone(name: str) -> None:
    images, _ = images_of(name, "test", CHUNK + 9)
    for extractor in extractors(name):
        whole = extractor.features(images)
        assert whole.shape == (len(images), extractor.dimensions)
        assert whole.dtype == torch.float32
        assert torch.equal(extractor.features(images[5:6]), whole[5:6])
        assert torch.equal(extractor.features(images[7:70]), whole[7:70])
        assert torch.equal(extractor.features(images.flip(0)), whole.flip(0))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(extractor.features(images), whole)
        assert extractor.features(images[:0]).shape == (0, extractor.dimensions)
        changed = images[5:6].clone()
        changed[..., 4:, 4:] //= 2
        assert not torch.equal(extractor.features(changed), whole[5:6])


def test_damage_moves_the_features_more_than_other_real_images_do() -> None:
    real, _ = images_of("fashion", "train", 400)
    other, _ = images_of("fashion", "test", 400)
    blurred = F.avg_pool2d(other.float(), 3, 1, padding=1).round().to(torch.uint8)
    for extractor in extractors("fashion")[:2]:  # pixels see what an image is made of, not what it shows
        centre = extractor.features(real).mean(0)
        floor, damaged = (((extractor.features(x).mean(0) - centre) ** 2).sum() for x in (other, blurred))
        assert damaged > 5 * floor


def test_mobilenet_names_no_classes() -> None:
    images, _ = images_of("digits", "test", 3)
    mobile, cnn, thumbnails = extractors("digits")
    assert mobile.classes(images) is None
    assert thumbnails.classes(images) is None
    assert cnn.classes(images) is not None
    assert (mobile.title, cnn.title) == ("MobileNetV2", "CNN of digits")
    assert "FID" not in mobile.title + cnn.title


def test_unlabelled_sets_have_a_classifier_too() -> None:
    facts = DigitsParams(labels=False).facts()
    assert classifier(ClassifierParams(), facts=facts, device=CPU).title == "CNN of digits"


def test_a_set_without_a_classifier_is_refused_with_the_alternatives() -> None:
    facts = replace(DigitsParams().facts(), domain="", source="/images")
    with pytest.raises(SdditError, match="digits, emoji or fashion") as refused:
        classifier(ClassifierParams(), facts=facts, device=CPU)
    assert refused.value.problems[0].code == "SD-T910"
    assert "mobilenet" in refused.value.problems[0].fix


@pytest.mark.parametrize(("index", "params"), [(0, MobilenetParams()), (1, ClassifierParams()), (2, PixelsParams())])
def test_the_width_is_known_before_anything_is_built(
    index: int, params: MobilenetParams | ClassifierParams | PixelsParams
) -> None:
    assert extractors("digits")[index].dimensions == params.dimensions


def test_thumbnails_are_means_of_their_places() -> None:
    thumbnails = extractors("digits")[2]
    images = torch.randint(0, 256, (3, 3, 32, 64), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    expected = images.double().view(3, 3, 16, 2, 16, 4).mean(dim=(3, 5)).flatten(1) / 255
    torch.testing.assert_close(thumbnails.features(images).double(), expected)
    small = images[..., :8, :8]
    repeated = small.repeat_interleave(2, 2).repeat_interleave(2, 3)
    torch.testing.assert_close(thumbnails.features(small), thumbnails.features(repeated))


def test_the_cnn_takes_levels_and_unit_range_alike() -> None:
    network = ClassCNN(8, 8, 10).eval()
    images = torch.randint(0, 256, (4, 1, 8, 8), dtype=torch.uint8).expand(-1, 3, -1, -1)
    unit = images[:, :1].float() / 127.5 - 1
    torch.testing.assert_close(network(images)[1], network(unit)[1])


def test_the_colour_cnn_averages_larger_images() -> None:
    network = ColourCNN(9).eval()
    small = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    large = small.repeat_interleave(2, 2).repeat_interleave(2, 3)
    torch.testing.assert_close(network(large)[1], network(small)[1])
    torch.testing.assert_close(network(small / 127.5 - 1)[1], network(small)[1])
    assert not torch.allclose(network(small.flip(1))[1], network(small)[1])


def test_the_emoji_classifier_is_balanced_and_serves_64_pixels() -> None:
    known = json.loads((ASSETS / "classifier_emoji.json").read_text())
    network, right = ClassifierFeatures("emoji", CPU), {}
    for size in (32, 64):
        data = emoji(EmojiParams(size=size), split="test")
        x, labels = data.fetch(range(len(data)))
        right[size] = (network.classes(data.to_images(x)) == labels).double()
        recalls = [right[size][labels == label].mean().item() for label in range(8)]
        assert sum(recalls) / 8 == pytest.approx(known["test_balanced_accuracy"], abs=0.02)
        assert min(recalls) > 1 / 8
    assert (right[32] - right[64]).abs().mean() < 0.05
    assert (ASSETS / "classifier_emoji.safetensors").stat().st_size < 2**20


def test_the_shipped_classifier_says_that_it_classifies_and_the_others_do_not(toys):
    features = {component.name: component.params for component in toys.registries.features}
    classifying = [
        name for name, params in features.items() if "class_accuracy" in params.model_construct().own_figures
    ]
    assert classifying == ["classifier"]


def test_an_extractor_is_built_from_python_with_the_name_of_a_device() -> None:
    facts = sddit.build("datasets", "digits", split="test").facts
    images = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    by_name, by_device = (
        sddit.build("features", "mobilenet", facts=facts, device=device).features(images)
        for device in ("cpu", torch.device("cpu"))
    )
    assert torch.equal(by_name, by_device)
    with pytest.raises(SdditError, match=r"SD-T926.*missing: facts, device(.|\n)*require_recipe\(\)\.facts"):
        sddit.build("features", "mobilenet")
    with pytest.raises(SdditError, match="SD-R162"):
        sddit.build("features", "mobilenet", facts=facts, device="gpu")
