"""Moving averages of weights: the generation EMAs and the teacher. One rule, two uses, neither reads the other."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from sddit.backbones import Backbone
from sddit.interfaces import Tap
from sddit.losses import Losses
from sddit.recipes.settings import EmaSettings

M = TypeVar("M", bound=nn.Module)


def follow(target: nn.Module, source: nn.Module, keep: float) -> None:
    """target <- keep * target + (1 - keep) * source, by parameter name; buffers are copied.

    `target` may lack parameters of `source` (a truncated teacher), never have others. Weights are float32 or wider, also
    under bf16 autocast: a bf16 average with decay 0.9999 would never move.
    """
    newest = dict(source.named_parameters())
    names, values = zip(*target.named_parameters(), strict=True)
    with torch.no_grad():
        torch._foreach_lerp_(list(values), [newest[name].detach() for name in names], 1.0 - keep)
        fresh = dict(source.named_buffers())
        for name, buffer in target.named_buffers():
            buffer.copy_(fresh[name])


def frozen_copy(module: M) -> M:
    """A copy in evaluation mode that takes no gradient."""
    return copy.deepcopy(module).eval().requires_grad_(False)


class WeightAverage:
    """A generation EMA of the student: `[ema.LABEL]`."""

    def __init__(self, settings: EmaSettings, student: Backbone) -> None:
        self.settings = settings
        self.module = frozen_copy(student)

    def decay(self, step: int) -> float:
        """The share kept after optimizer step number `step`, counted from 0."""
        ramp = (1 + step) / (10 + step) if self.settings.ramp else 1.0
        return min(self.settings.decay, ramp)

    def update(self, student: nn.Module, step: int) -> None:
        """One step; call it once after each optimizer step."""
        follow(self.module, student, self.decay(step))


class Teacher:
    """Moving averages of the student's backbone, cut after the deepest wanted tap, and of the terms' own modules.

    It is no submodule of what is trained: it has no gradient, no optimizer state and no decoder.
    """

    def __init__(self, backbone: Backbone, terms: Losses, taps: Sequence[Tap] | None) -> None:
        self.backbone = frozen_copy(backbone)
        if taps is not None:  # None: a term reads its output
            self.backbone.truncate(taps)
        self.modules: dict[str, dict[str, nn.Module]] = {
            label: {name: frozen_copy(term.get_submodule(name)) for name in term.averaged}
            for label, term in terms.items()
        }

    def update(self, backbone: nn.Module, terms: Losses, momentum: float) -> None:
        """theta_t <- m theta_t + (1 - m) theta_s, after the optimizer step."""
        follow(self.backbone, backbone, momentum)
        for label, modules in self.modules.items():
            for name, module in modules.items():
                follow(module, terms[label].get_submodule(name), momentum)

    def tensors(self) -> dict[str, Tensor]:
        """All its weights by name, for a checkpoint."""
        named = {f"backbone.{name}": value for name, value in self.backbone.state_dict().items()}
        for label, modules in self.modules.items():
            for name, module in modules.items():
                named |= {f"{label}.{name}.{key}": value for key, value in module.state_dict().items()}
        return named

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """The inverse of `tensors`; a missing or surplus name raises."""
        if tensors.keys() != self.tensors().keys():
            raise KeyError("the teacher's tensors are not those of this recipe")
        self.backbone.load_state_dict(under("backbone.", tensors))
        for label, modules in self.modules.items():
            for name, module in modules.items():
                module.load_state_dict(under(f"{label}.{name}.", tensors))


def under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The entries whose name begins with `prefix`, without it."""
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
