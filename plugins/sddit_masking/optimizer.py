"""Define Adan, the optimizer of MDTv2."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from pytorch_optimizer import Adan as PackagedAdan

from sddit.value_schedules import value_at
from sddit_masking.params import AdanParams


class Adan:
    """Adan (arXiv:2208.06677), algorithm 1, as implemented in pytorch-optimizer."""

    def __init__(self, params: AdanParams) -> None:
        self.params = params

    def __call__(self, groups: Sequence[Mapping[str, Any]], device: torch.device) -> torch.optim.Optimizer:
        """Build the optimizer from groups with `params`, `lr_scale` and `head`; the loop uses `lr_scale`."""
        return PackagedAdan(
            [dict(group) for group in groups],
            lr=value_at(self.params.lr, 0, 1),
            betas=self.params.betas,
            eps=self.params.eps,
            weight_decay=self.params.weight_decay,
            weight_decouple=True,
        )
