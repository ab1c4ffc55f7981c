"""Provide the base class of losses, and a typed collection of them."""

from __future__ import annotations

from collections.abc import ItemsView, Iterable, Mapping, ValuesView
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from sddit.interfaces import Context, Outputs, View


class LossTerm(nn.Module):
    """A labelled loss of the objective. Subclass it, write `forward`, and register the subclass.

    Return one value per sample, [B], so that noise windows, micro-batches and the log by noise level work. In
    `ema_modules`, declare the modules whose EMA the teacher keeps; change buffers only in `after_step`.
    """

    ema_modules: tuple[str, ...] = ()

    def __init__(self) -> None:
        super().__init__()
        self._logged: dict[str, tuple[Tensor, int]] = {}

    def forward(self, ctx: Context, views: Mapping[str, View], outputs: Mapping[str, Outputs]) -> Tensor:
        """Return one value per sample [B], or a scalar if the params set `couples_samples`."""
        raise NotImplementedError

    def log(self, name: str, value: Tensor) -> None:
        """Log a diagnostic: its mean over the micro-batches and steps of a log interval. No device sync."""
        total, count = self._logged.get(name, (torch.zeros((), dtype=torch.float32, device=value.device), 0))
        self._logged[name] = (total + value.detach().float().mean(), count + 1)

    def after_step(self, ctx: Context) -> None:
        """Update buffers from what forward staged. Not called for a skipped step."""

    def staged(self) -> Iterable[Tensor]:
        """Return what forward staged for `after_step`. The step is skipped if any of it is non-finite."""
        return ()

    def discard(self) -> None:
        """Discard what forward staged: the step is not taken."""

    def diagnostics(self) -> dict[str, Tensor]:
        """Return the means of what was logged since the last call, on the device."""
        read = {name: total / count for name, (total, count) in self._logged.items()}
        self._logged.clear()
        return read


class Losses(nn.ModuleDict):
    """{label: loss}, a ModuleDict whose members are known to be losses."""

    if TYPE_CHECKING:

        def __getitem__(self, label: str) -> LossTerm: ...
        def items(self) -> ItemsView[str, LossTerm]: ...
        def values(self) -> ValuesView[LossTerm]: ...
