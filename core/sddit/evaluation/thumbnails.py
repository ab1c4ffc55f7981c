"""Average images over a coarse grid, to find near copies of training images without any network."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

CHUNK = 64  # images of a forward pass; it is always full, so that no feature depends on the number of images
THUMBNAIL = 16  # cells of a thumbnail along each side


class PixelFeatures:
    """Red, green and blue in [0, 1], averaged over each cell of a 16x16 grid. A smaller image is repeated by pixel."""

    title = "pixels"
    dimensions = 3 * THUMBNAIL**2

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def features(self, images: Tensor) -> Tensor:
        """Return float32 [n, 768] on the CPU for images uint8 [n, 3, H, W]."""
        return in_chunks(self._thumbnails, images, self.dimensions, self._device)

    def classes(self, images: Tensor) -> None:
        """Return None: pixels do not classify."""

    def _thumbnails(self, images: Tensor) -> Tensor:
        return F.adaptive_avg_pool2d(images.float() / 255, THUMBNAIL).flatten(1)


@torch.no_grad()
def in_chunks(network: Callable[[Tensor], Tensor], images: Tensor, width: int, device: torch.device) -> Tensor:
    """Apply a network to images [n, 3, H, W] in full chunks, the last one padded with black: float32 [n, width]."""
    results = [torch.empty(0, width)]
    with torch.autocast(device.type, enabled=False):
        for chunk in torch.split(images, CHUNK):
            full = F.pad(chunk.to(device), (0, 0, 0, 0, 0, 0, 0, CHUNK - len(chunk)))
            results.append(network(full)[: len(chunk)].cpu())
    return torch.cat(results)
