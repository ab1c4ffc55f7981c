"""Provide the base class of losses, and a typed collection of them."""

from __future__ import annotations

from collections.abc import ItemsView, Iterable, Iterator, Mapping, ValuesView
from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor, nn

from sddit.interfaces import Context, Outputs, ParameterRole, View


class LossTerm(nn.Module):
    """A labelled loss of the objective. Subclass it, write `forward`, and register the subclass.

    Return one value per sample, [B], so that noise windows, micro-batches and the log by noise level work. In
    `ema_modules`, declare the modules whose EMA the teacher keeps; change buffers only in `after_step`.

    Parameters that `__init__` freezes with `requires_grad_(False)` are not trained and keep their values. Modules
    inside the loss whose parameters are all frozen, such as a fixed target network, stay in evaluation mode.
    """

    ema_modules: tuple[str, ...] = ()

    def __init__(self) -> None:
        super().__init__()
        self._logged: dict[str, tuple[Tensor, int]] = {}

    def forward(self, ctx: Context, views: Mapping[str, View], outputs: Mapping[str, Outputs]) -> Tensor:
        """Return one value per sample [B], or a scalar if the params set `couples_samples`."""
        raise NotImplementedError

    def train(self, mode: bool = True) -> Self:
        """Set training mode, but keep frozen modules in evaluation mode: their BatchNorm and dropout do not change."""
        super().train(mode)
        for module in frozen_modules(self):
            module.eval()
        return self

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

    def parameter_role(self, name: str, parameter: Tensor) -> ParameterRole:
        """State the role of the loss's own parameter `name`. By default, every two-dimensional one is a head."""
        return ParameterRole("head" if parameter.ndim == 2 else "vector")

    def diagnostics(self) -> dict[str, Tensor]:
        """Return the means of what was logged since the last call, on the device."""
        read = {name: total / count for name, (total, count) in self._logged.items()}
        self._logged.clear()
        return read


def frozen_modules(module: nn.Module) -> Iterator[nn.Module]:
    """Yield the largest modules inside `module` that have parameters, all of them frozen."""
    for child in module.children():
        taking = [parameter.requires_grad for parameter in child.parameters()]
        if taking and not any(taking):
            yield child
        else:
            yield from frozen_modules(child)


class Losses(nn.ModuleDict):
    """{label: loss}, a ModuleDict whose members are known to be losses."""

    if TYPE_CHECKING:

        def __getitem__(self, label: str) -> LossTerm: ...
        def items(self) -> ItemsView[str, LossTerm]: ...
        def values(self) -> ValuesView[LossTerm]: ...
