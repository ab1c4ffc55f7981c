"""Refuse what a codec does not take, and run its network so that the batch does not matter."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from sddit.data.full_precision import full_precision
from sddit.errors import error
from sddit.interfaces import CodecFacts

PIXELS_AT_ONCE = {"cpu": 2**16}
"""Pixels of one forward pass by device: 16 images of 64x64, one of 256x256."""
MANY_PIXELS = 2**20
"""The same on other devices: 16 images of 256x256."""


def check_images(images: Tensor, facts: CodecFacts) -> tuple[int, int, int]:
    """Return the shape of the latents of images. Raises SD-D353 unless they are uint8 [B, 3, H, W] of a fitting size.

    Grey images are repeated to three channels before, as `Dataset.to_images` does.
    """
    if images.dtype != torch.uint8 or images.ndim != 4:
        got = f"{images.dtype} {tuple(images.shape)}"
        raise error("SD-D353", "these are not images", where="images", got=got, expect="uint8 [B, 3, H, W]")
    return facts.latent_shape(tuple(images.shape[1:]))


def check_latents(latents: Tensor, facts: CodecFacts) -> tuple[int, int, int]:
    """Return the shape of the images of latents. Raises SD-D353 unless they are finite floats [B, C, h, w]."""
    if not latents.is_floating_point() or latents.ndim != 4:
        got = f"{latents.dtype} {tuple(latents.shape)}"
        raise error("SD-D353", "these are not latents", where="latents", got=got, expect="floats [B, C, h, w]")
    if wrong := int((~latents.isfinite()).sum()):
        got = f"{wrong} of {latents.numel()} numbers are NaN or infinite"
        raise error("SD-D353", "these latents cannot be decoded", where="latents", got=got, expect="finite numbers")
    return facts.image_shape(tuple(latents.shape[1:]))


def in_unit_range(images: Tensor, pixel_range: tuple[float, float]) -> Tensor:
    """Return images uint8 as float32 in the range that a network takes."""
    low, high = pixel_range
    return images.float() / 255 * (high - low) + low


def as_images(x: Tensor, pixel_range: tuple[float, float]) -> Tensor:
    """Return what a network gives in its range as uint8, rounded and clipped."""
    low, high = pixel_range
    return ((x.float() - low) / (high - low) * 255).round().clamp(0, 255).to(torch.uint8)


@torch.no_grad()
def run_in_chunks(
    network: Callable[[Tensor], tuple[Tensor, ...]], x: Tensor, device: torch.device, image: tuple[int, int, int]
) -> tuple[Tensor, ...]:
    """Apply a network to x [B, ...] in chunks of one size, the last one padded with zeros, and return results on the
    CPU.

    The size of the chunks depends only on the device and on the shape of an image, so no result depends on B.
    """
    size = max(1, PIXELS_AT_ONCE.get(device.type, MANY_PIXELS) // (image[1] * image[2]))
    results = []
    with torch.autocast(device.type, enabled=False), full_precision():
        for chunk in torch.split(x, size):
            padding = [0] * (2 * x.ndim - 1) + [size - len(chunk)]
            full = F.pad(chunk.to(device), padding)
            results.append(tuple(part[: len(chunk)].cpu() for part in network(full)))
    return tuple(torch.cat(parts) for parts in zip(*results, strict=True))
