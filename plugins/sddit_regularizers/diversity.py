"""Define DiverseDiT's loss, which makes the features of different blocks differ."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sddit.interfaces import Context, Outputs, View
from sddit.losses import LossTerm
from sddit_regularizers.params import DiversityParams


class Diversity(LossTerm):
    """The representation diversity loss of DiverseDiT (arXiv:2603.04239), per sample [B]: gate times

        L_i = (A + B - C) / 3
        A   mean over pairs of blocks of |cos(m_k, m_l)|, where m_k is the mean token of image i after block k
        B   mean over pairs of blocks and over tokens n of cos(h_k[n], h_l[n])
        C   variance over blocks of the mean normalized token, mean over channels

    The paper has the variance of the mean activation; ours is that of tokens with LayerNorm, since a variance without
    limit is raised most easily by longer features.

    The gate follows the mean of L over the batch: 1 above `gate_high`, L / gate_high - gate_low / gate_high down to
    `gate_low`, 0 below. This is the printed formula, which jumps at `gate_high`. L is that of the last step, so that
    micro-batches and processes share one gate; at the first step it is 1.
    """

    gate: Tensor

    def __init__(self, params: DiversityParams, **_: Any) -> None:
        super().__init__()
        self.params = params
        self.register_buffer("gate", torch.ones(()))
        self._staged: tuple[Tensor, int] | None = None  # sum of L over samples, number of samples

    def forward(self, ctx: Context, views: Mapping[str, View], outputs: Mapping[str, Outputs]) -> Tensor:
        students = {name: view for name, view in views.items() if view.network == "student"}
        with torch.autocast(next(iter(views.values())).x.device.type, enabled=False):
            values = [self.similarity(self.blocks(view, outputs[name])) for name, view in students.items()]
        value = torch.stack(values).mean(dim=0)
        self.stage(value.detach())
        self.log("gate", self.gate)
        return self.gate.to(value.dtype) * value

    def blocks(self, view: View, outputs: Outputs) -> Tensor:
        """Return the tokens after every tap at the visible positions, [L, B, n, D] in float32 or wider."""
        h = torch.stack([outputs.taps[tap].at(view.visible) for tap in self.params.taps])
        return h.to(torch.promote_types(h.dtype, torch.float32))

    def similarity(self, h: Tensor) -> Tensor:
        """Return L [B] of the tokens [L, B, n, D] after L blocks, and log its parts."""
        pairs = len(h) * (len(h) - 1)
        means = h.mean(dim=2)  # [L, B, D]
        directions = F.normalize(means, dim=-1).transpose(0, 1)  # [B, L, D]
        cosines = (directions @ directions.transpose(1, 2)).abs()  # [B, L, L]
        mean_cosine = (cosines.sum(dim=(1, 2)) - cosines.diagonal(dim1=1, dim2=2).sum(dim=1)) / pairs
        tokens = F.normalize(h, dim=-1)
        # The sum over pairs k != l of u_k . u_l is |sum_k u_k|^2 - sum_k |u_k|^2.
        products = tokens.sum(dim=0).square().sum(dim=-1) - tokens.square().sum(dim=(0, -1))  # [B, n]
        token_cosine = products.mean(dim=1) / pairs
        variance = F.layer_norm(h, h.shape[-1:]).mean(dim=2).var(dim=0, correction=0).mean(dim=1)
        value = (mean_cosine + token_cosine - variance) / 3
        parts = {"similarity": value, "mean_cosine": mean_cosine, "token_cosine": token_cosine, "variance": variance}
        for name, part in parts.items():
            self.log(name, part)
        return value

    def stage(self, value: Tensor) -> None:
        total, count = self._staged or (torch.zeros_like(value[0]), 0)
        self._staged = total + value.sum(), count + len(value)

    @torch.no_grad()
    def after_step(self, ctx: Context) -> None:
        """Set the gate for the next step."""
        if self._staged is not None:
            total, count = self._staged
            self.gate.copy_(self.gate_of(ctx.mean(total / count)))
        self.discard()

    def gate_of(self, value: Tensor) -> Tensor:
        """Return the gate at a mean value of L."""
        low, high = self.params.gate_low, self.params.gate_high
        gate = torch.where(value > high, torch.ones_like(value), (value - low) / high)
        return torch.where(value < low, torch.zeros_like(value), gate)

    def staged(self) -> list[Tensor]:
        return [] if self._staged is None else [self._staged[0]]

    def discard(self) -> None:
        self._staged = None
