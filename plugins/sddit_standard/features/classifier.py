"""Small CNNs that name the class of an image of an embedded data set: one for grey images, one for colour."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

FEATURES = 64
COLOUR_SIZE = 32
COLOUR_WIDTHS = (32, 64, 96, 128, 128)
COLOUR_HALVED = (True, True, False, True, False)


class ClassCNN(nn.Module):
    """Three convolutions, a layer of 64 features, the class scores. Built for one height and width, and for grey
    images.

    Larger images are halved after every convolution, images below 16 pixels only after the second.
    """

    mean: Tensor  # [64], of the features over the training split
    std: Tensor  # [64]

    def __init__(self, height: int, width: int, num_classes: int) -> None:
        super().__init__()
        self.halved = (True, True, True) if min(height, width) >= 16 else (False, True, False)
        self.convolutions = nn.ModuleList(
            nn.Conv2d(inside, out, 3, padding=1) for inside, out in ((1, 32), (32, 64), (64, 64))
        )
        shrink = 2 ** sum(self.halved)
        self.to_features = nn.Linear(64 * (height // shrink) * (width // shrink), FEATURES)
        self.to_scores = nn.Linear(FEATURES, num_classes)
        self.register_buffer("mean", torch.zeros(FEATURES))
        self.register_buffer("std", torch.ones(FEATURES))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 [n, 3, H, W] or unit-range [n, 1, H, W] -> (features [n, 64], scores [n, classes])."""
        x = unit_grey(images) if images.dtype == torch.uint8 else images
        for convolution, halved in zip(self.convolutions, self.halved, strict=True):
            x = F.relu(convolution(x))
            x = F.max_pool2d(x, 2) if halved else x
        h = self.to_features(x.flatten(1))
        return (h - self.mean) / self.std, self.to_scores(F.relu(h))


class ColourCNN(nn.Module):
    """Five convolutions with batch norms, the mean over places, a layer of 64 features, the class scores.

    For square images in colour of 32 pixels; others are averaged to this size.
    """

    mean: Tensor  # [64], of the features over the training split
    std: Tensor  # [64]

    def __init__(self, num_classes: int, dropout: float = 0.0) -> None:
        super().__init__()
        inputs = (3, *COLOUR_WIDTHS[:-1])
        self.convolutions = nn.ModuleList(
            nn.Conv2d(inside, out, 3, padding=1, bias=False) for inside, out in zip(inputs, COLOUR_WIDTHS, strict=True)
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for width in COLOUR_WIDTHS)
        self.dropout = nn.Dropout(dropout)
        self.to_features = nn.Linear(COLOUR_WIDTHS[-1], FEATURES)
        self.to_scores = nn.Linear(FEATURES, num_classes)
        self.register_buffer("mean", torch.zeros(FEATURES))
        self.register_buffer("std", torch.ones(FEATURES))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 or unit-range [n, 3, H, W] -> (features [n, 64], scores [n, classes])."""
        x = unit_colour(images) if images.dtype == torch.uint8 else images
        x = F.adaptive_avg_pool2d(x, (COLOUR_SIZE, COLOUR_SIZE))
        for convolution, norm, halved in zip(self.convolutions, self.norms, COLOUR_HALVED, strict=True):
            x = F.relu(norm(convolution(x)))
            x = F.max_pool2d(x, 2) if halved else x
        h = self.to_features(self.dropout(x.mean(dim=(2, 3))))
        return (h - self.mean) / self.std, self.to_scores(self.dropout(F.relu(h)))


def class_cnn(image: tuple[int, int, int], num_classes: int, dropout: float = 0.0) -> ClassCNN | ColourCNN:
    """Return the network for images [C, H, W] of an embedded data set. Grey ones need no dropout."""
    channels, height, width = image
    return ClassCNN(height, width, num_classes) if channels == 1 else ColourCNN(num_classes, dropout)


def unit_colour(images: Tensor) -> Tensor:
    """uint8 to [-1, 1]."""
    return images.float() / 127.5 - 1


def unit_grey(images: Tensor) -> Tensor:
    """uint8 [n, 3, H, W] to [n, 1, H, W] in [-1, 1]."""
    return images.float().mean(dim=1, keepdim=True) / 127.5 - 1
