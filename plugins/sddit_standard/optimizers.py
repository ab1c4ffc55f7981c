"""Optimizers of the core."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from sddit.value_schedules import value_at
from sddit_standard.params import AdamWParams


class AdamW:
    """Adam with decoupled weight decay (Loshchilov and Hutter, arXiv:1711.05101).

    The fused kernel is used everywhere: it is elementwise, so its bits do not depend on the number of threads (tested).
    """

    def __init__(self, params: AdamWParams) -> None:
        self.params = params

    def __call__(self, groups: Sequence[Mapping[str, Any]], device: torch.device) -> torch.optim.Optimizer:
        """groups: dicts with `params`, `lr_scale` and `head`; each keeps its `lr_scale` for the loop to set `lr` by."""
        return torch.optim.AdamW(
            [part for group in groups for part in self._split(group)],
            lr=value_at(self.params.lr, 0, 1),
            betas=self.params.betas,
            eps=self.params.eps,
            fused=True,
        )

    def _split(self, group: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """Yield the weights that decay, and those that do not."""
        params = list(group["params"])
        decayed = [p for p in params if p.ndim > 1 or self.params.decay_all]
        spared = [p for p in params if p.ndim <= 1 and not self.params.decay_all]
        for members, decay in ((decayed, self.params.decay(group.get("head", False))), (spared, 0.0)):
            if members:
                yield {**group, "params": members, "weight_decay": decay}
