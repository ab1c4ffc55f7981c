"""The trunk of MobileNetV2 (arXiv:1801.04381), for features. Batch norms are folded into the convolutions."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional as F

WIDTHS = (32, 16, 24, 24, 32, 32, 32, 64, 64, 64, 64, 96, 96, 96)  # stem and 13 bottlenecks: table 2 down to c = 96
STRIDES = (2, 1, 2, 1, 2, 1, 1, 2, 1, 1, 1, 1, 1, 1)
EXPANSION = 6


class MobileNetV2(nn.Module):
    """The stem and the first 13 bottlenecks, [n, 3, H, W] -> [n, 96, H/16, W/16]."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, WIDTHS[0], 3, stride=STRIDES[0], padding=1)
        expansions = (1, *[EXPANSION] * (len(WIDTHS) - 2))
        shapes = zip(pairwise(WIDTHS), STRIDES[1:], expansions, strict=True)
        self.blocks = nn.Sequential(*[Bottleneck(wide, out, stride, e) for (wide, out), stride, e in shapes])

    def forward(self, x: Tensor) -> Tensor:
        features: Tensor = self.blocks(F.relu6(self.stem(x)))
        return features


class Bottleneck(nn.Module):
    """Expand, filter each channel, project without activation; a residual where the shape stays (section 3.3)."""

    def __init__(self, width: int, out: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = width * expansion
        self.expand = nn.Conv2d(width, hidden, 1) if expansion > 1 else None
        self.filter = nn.Conv2d(hidden, hidden, 3, stride=stride, padding=1, groups=hidden)
        self.project = nn.Conv2d(hidden, out, 1)
        self.residual = stride == 1 and width == out

    def forward(self, x: Tensor) -> Tensor:
        h = x if self.expand is None else F.relu6(self.expand(x))
        out: Tensor = self.project(F.relu6(self.filter(h)))
        return x + out if self.residual else out
