"""Feature extractors for metrics: what shipped networks see in images, and plain pixels.

Their distances are never called FID.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from sddit.errors import raise_all
from sddit.evaluation.thumbnails import PixelFeatures, in_chunks
from sddit.interfaces import DataFacts
from sddit_standard.features.classifier import FEATURES, class_cnn
from sddit_standard.features.mobilenet import WIDTHS, MobileNetV2
from sddit_standard.features.params import no_classifier

if TYPE_CHECKING:
    from sddit_standard.features.params import ClassifierParams, MobilenetParams, PixelsParams

ASSETS = Path(__file__).parent / "assets"

N = TypeVar("N", bound=nn.Module)

SIDE = 64  # pixels of an image as MobileNetV2 gets it
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def mobilenet(params: MobilenetParams, *, facts: DataFacts, device: torch.device) -> MobileNetFeatures:
    """MobileNetV2 with its ImageNet weights."""
    return MobileNetFeatures(device)


def classifier(params: ClassifierParams, *, facts: DataFacts, device: torch.device) -> ClassifierFeatures:
    """Return the class CNN of the data set. Raises SD-T910 if none was shipped for it."""
    raise_all(no_classifier(facts))
    return ClassifierFeatures(facts.domain, device)


def pixels(params: PixelsParams, *, facts: DataFacts, device: torch.device) -> PixelFeatures:
    """Thumbnails."""
    return PixelFeatures(device)


class MobileNetFeatures:
    """The mean over places of the 96 channels after the 14th stage of MobileNetV2.

    Images are resized to 64x64 (bilinear; antialiased where they are larger), so that a small image reaches as deep a
    stage as a large one; then shifted and scaled as the weights expect.
    """

    title = "MobileNetV2"
    dimensions = WIDTHS[-1]

    def __init__(self, device: torch.device) -> None:
        self._network = _load(MobileNetV2(), "mobilenetv2.safetensors").to(device)
        self._mean = torch.tensor(IMAGENET_MEAN, device=device)[:, None, None]  # [3, 1, 1]
        self._std = torch.tensor(IMAGENET_STD, device=device)[:, None, None]
        self._device = device

    def features(self, images: Tensor) -> Tensor:
        """uint8 [n, 3, H, W] -> float32 [n, 96] on the CPU."""
        return in_chunks(self._features, images, self.dimensions, self._device)

    def classes(self, images: Tensor) -> None:
        """None: ImageNet's classes are not those of the data set."""

    def _features(self, images: Tensor) -> Tensor:
        x = F.interpolate(images.float() / 255, size=(SIDE, SIDE), mode="bilinear", antialias=True)
        maps: Tensor = self._network((x - self._mean) / self._std)  # [n, 96, 4, 4]
        return maps.mean(dim=(2, 3))


class ClassifierFeatures:
    """The 64 features of a class CNN before its last layer, each of mean 0 and standard deviation 1 over the training
    split.
    """

    dimensions = FEATURES

    def __init__(self, domain: str, device: torch.device) -> None:
        known = json.loads((ASSETS / f"classifier_{domain}.json").read_text(encoding="utf-8"))
        self.title = f"CNN of {domain}"
        network = class_cnn(known["image"], len(known["class_names"]))
        self._network = _load(network, f"classifier_{domain}.safetensors").to(device)
        self._device = device

    def features(self, images: Tensor) -> Tensor:
        """uint8 [n, 3, H, W] -> float32 [n, 64] on the CPU."""
        return in_chunks(lambda chunk: self._network(chunk)[0], images, self.dimensions, self._device)

    def classes(self, images: Tensor) -> Tensor:
        """uint8 [n, 3, H, W] -> the class it sees [n] int64 on the CPU."""
        num_classes = self._network.to_scores.out_features
        return in_chunks(lambda chunk: self._network(chunk)[1], images, num_classes, self._device).argmax(dim=1)


def _load(network: N, name: str) -> N:
    """Return the network with its shipped weights, which are stored in half precision and used in float32."""
    network.load_state_dict({key: value.float() for key, value in load_file(ASSETS / name).items()})
    return network.eval().requires_grad_(False)
