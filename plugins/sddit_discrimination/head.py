"""Define the projection head of DINO and iBOT, from tokens to logits over prototypes."""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sddit_discrimination.params import DiscriminationParams

Kind = Literal["cls", "patch"]


class Head(nn.Module):
    """Linear layers with GELU, a normalized bottleneck, weight-normalized prototypes (arXiv:2104.14294, appendix C).

    `shared_head` is iBOT's: it only shares the prototypes; the layers before them are always shared.
    """

    def __init__(self, params: DiscriminationParams, width: int) -> None:
        super().__init__()
        widths = [width, *[params.hidden] * (params.layers - 1), params.bottleneck]
        linears = [nn.Linear(before, after) for before, after in pairwise(widths)]
        self.mlp = nn.Sequential(linears[0], *(layer for linear in linears[1:] for layer in (nn.GELU(), linear)))
        self.last = Prototypes(params)
        self.patch_last = None if params.shared_head else Prototypes(params)

    def forward(self, tokens: Tensor, kind: Kind, *, frozen: bool = False) -> Tensor:
        """Map [..., D] to logits [..., K]. `frozen` blocks the gradient to the prototypes only."""
        last = self.last if kind == "cls" or self.patch_last is None else self.patch_last
        z: Tensor = self.mlp(tokens)
        logits: Tensor = last(F.normalize(z, dim=-1, eps=1e-12), frozen=frozen)
        return logits


class Prototypes(nn.Module):
    """z -> g_k (v_k / |v_k|) . z, without bias; with norm_last_layer there is no gain g."""

    weight_g: nn.Parameter | None

    def __init__(self, params: DiscriminationParams) -> None:
        super().__init__()
        self.weight_v = nn.Parameter(torch.empty(params.prototypes, params.bottleneck))
        gain = None if params.norm_last_layer else nn.Parameter(torch.empty(params.prototypes, 1))
        self.register_parameter("weight_g", gain)

    def forward(self, z: Tensor, *, frozen: bool = False) -> Tensor:
        """Map [..., bottleneck] to [..., K]."""
        weight = F.normalize(self.weight_v, dim=1)
        if self.weight_g is not None:
            weight = self.weight_g * weight
        return F.linear(z, weight.detach() if frozen else weight)


def init_parameter(name: str, parameter: Tensor, generator: torch.Generator | None = None) -> None:
    """Initialize gains with 1, biases with 0, and weights with a normal distribution of std 0.02, truncated at 2."""
    with torch.no_grad():
        if name.endswith("weight_g"):
            parameter.fill_(1.0)
        elif name.endswith("bias"):
            parameter.zero_()
        else:
            nn.init.trunc_normal_(parameter, std=0.02, generator=generator)
