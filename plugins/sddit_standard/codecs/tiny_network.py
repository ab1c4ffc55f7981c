"""Define the network of `tiny_kl`: a small autoencoder with a normal posterior (arXiv:1312.6114)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

CHANNELS = 16  # of a latent
FACTOR = 8  # pixels along each side of an image for one place of a latent
GROUPS = 8  # of every normalization
LOG_VARIANCE = (-30.0, 20.0)  # range to which a log-variance is clamped, as readers of latents clamp it
ENCODER_WIDTHS = (32, 64, 96)  # at 1/2, 1/4 and 1/8 of the image's side
DECODER_WIDTHS = (96, 64, 48)  # at 1/8, 1/4 and 1/2 of it


class Block(nn.Module):
    """Add two normalized convolutions to the input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(GROUPS, width), nn.GroupNorm(GROUPS, width)
        self.conv1, self.conv2 = (nn.Conv2d(width, width, 3, padding=1) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        return x + torch.as_tensor(self.conv2(F.silu(self.norm2(h))))


class TinyKL(nn.Module):
    """Map images in [-1, 1] to the mean and log-variance of latents, and latents to images.

    Both directions are a network plus a linear map of squares of 8x8 pixels, which carries colours past the norms.
    """

    def __init__(self) -> None:
        super().__init__()
        first, middle, last = ENCODER_WIDTHS
        self.encoder = nn.Sequential(
            nn.PixelUnshuffle(2),  # [B, 12, H/2, W/2]
            nn.Conv2d(12, first, 3, padding=1),
            Block(first),
            nn.Conv2d(first, middle, 3, stride=2, padding=1),
            Block(middle),
            nn.Conv2d(middle, last, 3, stride=2, padding=1),
            Block(last),
            nn.SiLU(),
            nn.Conv2d(last, 2 * CHANNELS, 3, padding=1),
        )
        self.encoder_skip = nn.Conv2d(3, 2 * CHANNELS, FACTOR, stride=FACTOR)
        first, middle, last = DECODER_WIDTHS
        self.decoder = nn.Sequential(
            nn.Conv2d(CHANNELS, first, 3, padding=1),
            Block(first),
            Block(first),
            nn.Conv2d(first, 4 * middle, 1),
            nn.PixelShuffle(2),
            Block(middle),
            Block(middle),
            nn.Conv2d(middle, 4 * last, 1),
            nn.PixelShuffle(2),
            Block(last),
            Block(last),
            nn.SiLU(),
            nn.Conv2d(last, 12, 3, padding=1),
            nn.PixelShuffle(2),  # [B, 3, H, W]
        )
        self.decoder_skip = nn.ConvTranspose2d(CHANNELS, 3, FACTOR, stride=FACTOR)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log-variance, each [B, 16, H/8, W/8], of images x [B, 3, H, W]."""
        mean, log_variance = (self.encoder(x) + self.encoder_skip(x)).chunk(2, dim=1)
        return mean, log_variance.clamp(*LOG_VARIANCE)

    def decode(self, z: Tensor) -> Tensor:
        """Return images [B, 3, H, W] of latents z [B, 16, H/8, W/8]."""
        return torch.as_tensor(self.decoder(z) + self.decoder_skip(z))
