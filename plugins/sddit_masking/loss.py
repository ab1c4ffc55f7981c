"""Define the reconstruction loss of MaskDiT."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sddit.interfaces import Context, Outputs, View
from sddit.losses import LossTerm
from sddit_dit.blocks import patchify
from sddit_masking.params import ReconstructionParams


def normalize_patches(patches: Tensor) -> Tensor:
    """Normalize patches [..., P] to mean 0 and unbiased variance 1, with 1e-6 added (arXiv:2111.06377, section 3)."""
    variance, mean = torch.var_mean(patches, dim=-1, keepdim=True)
    return (patches - mean) / (variance + 1e-6).sqrt()


def hidden_mean(values: Tensor, visible: Tensor) -> Tensor:
    """Average `values` [B, N] over the tokens that are not in `visible` [B, K]; [B]."""
    hidden = torch.ones_like(values).scatter(1, visible, 0.0)
    return (values * hidden).sum(dim=1) / (values.shape[1] - visible.shape[1])


class Reconstruction(LossTerm):
    """Squared error of D(x; sigma) over hidden patches, not weighted by noise level (arXiv:2306.09305, eq. 5).

    MaskDiT compares the denoised image with its *noised* input, normalized per patch. Views without hidden tokens are
    ignored; if no view has hidden tokens, the loss is 0.
    """

    def __init__(self, params: ReconstructionParams, *, grid: tuple[int, int], **_: Any) -> None:
        super().__init__()
        self.params = params
        self.grid = grid

    def forward(self, ctx: Context, views: Mapping[str, View], outputs: Mapping[str, Outputs]) -> Tensor:
        students = {name: view for name, view in views.items() if view.network == "student"}
        masked = [self.error(view, _x0(outputs[name])) for name, view in students.items() if view.visible is not None]
        if masked:
            return torch.stack(masked).mean(dim=0)
        return torch.stack([_x0(outputs[name]).flatten(1).sum(dim=1) for name in students]).sum(dim=0) * 0.0

    def error(self, view: View, x0: Tensor) -> Tensor:
        """Return the error of one masked view, [B]."""
        assert view.visible is not None
        target = patchify((view.x if self.params.target == "noised" else view.x0).to(x0.dtype), self.grid)  # [B, N, P]
        if self.params.normalize:
            target = normalize_patches(target)
        return hidden_mean((patchify(x0, self.grid) - target).square().mean(dim=-1), view.visible)


def _x0(output: Outputs) -> Tensor:
    """Return the estimated clean image, [B, C, H, W]."""
    assert output.x0 is not None, "needs() asks for the output"
    return output.x0
