"""Define the network of TAEF2, a small autoencoder that imitates that of FLUX.2, for the published weights.

The modules are named as in the files taef2_encoder.pth and taef2_decoder.pth of https://github.com/madebyollin/taesd.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

WIDTH = 64
CHANNELS = 32  # of a latent
FACTOR = 8
LIMIT = 3.0  # the decoder clamps latents softly to this absolute value


def convolution(width: int = WIDTH, out: int = WIDTH, *, stride: int = 1, bias: bool = True) -> nn.Conv2d:
    """Return a 3x3 convolution."""
    return nn.Conv2d(width, out, 3, stride=stride, padding=1, bias=bias)


class SoftClamp(nn.Module):
    """Clamp latents softly."""

    def forward(self, z: Tensor) -> Tensor:
        return LIMIT * torch.tanh(z / LIMIT)


class Block(nn.Module):
    """Three convolutions with a skip; `normalized` adds a wide branch with a group norm before them."""

    def __init__(self, *, normalized: bool = False) -> None:
        super().__init__()
        self.conv = nn.Sequential(convolution(), nn.ReLU(), convolution(), nn.ReLU(), convolution())
        self.pool: nn.Module | None = None
        if normalized:
            wide = 4 * WIDTH
            self.pool = nn.Sequential(
                nn.Conv2d(WIDTH, wide, 1, bias=False),
                nn.GroupNorm(4, wide),
                nn.ReLU(),
                nn.Conv2d(wide, WIDTH, 1, bias=False),
            )

    def forward(self, x: Tensor) -> Tensor:
        if self.pool is not None:
            x = x + self.pool(x)
        return torch.relu(x + self.conv(x))


def blocks(*, normalized: bool = False) -> list[nn.Module]:
    """Return the three blocks of one resolution."""
    return [Block(normalized=normalized) for _ in range(3)]


def encoder() -> nn.Sequential:
    """Return the network from images [B, 3, H, W] in [0, 1] to latents [B, 32, H/8, W/8]."""
    layers: list[nn.Module] = [convolution(3), Block()]
    for level in range(3):
        layers += [convolution(stride=2, bias=False), *blocks(normalized=level == 2)]
    return nn.Sequential(*layers, convolution(out=CHANNELS))


def decoder() -> nn.Sequential:
    """Return the network from latents to images."""
    layers: list[nn.Module] = [SoftClamp(), convolution(CHANNELS), nn.ReLU()]
    for level in range(3):
        layers += [*blocks(normalized=level == 0), nn.Upsample(scale_factor=2), convolution(bias=False)]
    return nn.Sequential(*layers, Block(), convolution(out=3))


class Taef2(nn.Module):
    """Both networks, as an `Autoencoder`: no posterior."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = encoder(), decoder()

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean = self.encoder(x)
        return mean, torch.zeros_like(mean)

    def decode(self, z: Tensor) -> Tensor:
        return torch.as_tensor(self.decoder(z))
