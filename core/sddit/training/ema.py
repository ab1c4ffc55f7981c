"""Keep exponential moving averages of weights: the EMAs used for generation, and the teacher."""

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


def ema_update_(target: nn.Module, source: nn.Module, decay: float) -> None:
    """Update target <- decay * target + (1 - decay) * source in place, by parameter name; buffers are copied.

    `target` may lack parameters of `source` (a truncated teacher) but has no others. Weights are float32 or wider, also
    under bf16 autocast: a bf16 average with decay 0.9999 would never change.
    """
    source_parameters = dict(source.named_parameters())
    names, values = zip(*target.named_parameters(), strict=True)
    with torch.no_grad():
        torch._foreach_lerp_(list(values), [source_parameters[name].detach() for name in names], 1.0 - decay)
        source_buffers = dict(source.named_buffers())
        for name, buffer in target.named_buffers():
            buffer.copy_(source_buffers[name])


def frozen_copy(module: M) -> M:
    """Return a copy in evaluation mode that takes no gradient."""
    return copy.deepcopy(module).eval().requires_grad_(False)


class EMA:
    """An EMA of the student's backbone, used for generation: `[ema.LABEL]`. Call `update` after each optimizer step."""

    def __init__(self, settings: EmaSettings, student: Backbone) -> None:
        self.settings = settings
        self.module = frozen_copy(student)

    def decay(self, step: int) -> float:
        """Return the decay after optimizer step number `step`, counted from 0."""
        ramp = (1 + step) / (10 + step) if self.settings.ramp else 1.0
        return min(self.settings.decay, ramp)

    def update(self, student: nn.Module, step: int) -> None:
        ema_update_(self.module, student, self.decay(step))


class Teacher:
    """EMAs of the student's backbone, truncated after the deepest wanted tap, and of modules of the losses.

    It is not a submodule of what is trained: it has no gradient, no optimizer state and no decoder. A frozen teacher
    keeps the weights that it was built with.
    """

    def __init__(self, backbone: Backbone, terms: Losses, taps: Sequence[Tap] | None, *, frozen: bool = False) -> None:
        self.frozen = frozen
        self.backbone = frozen_copy(backbone)
        if taps is not None:  # None: a loss reads its output
            self.backbone.truncate(taps)
        self.modules: dict[str, dict[str, nn.Module]] = {
            label: {name: frozen_copy(term.get_submodule(name)) for name in term.ema_modules}
            for label, term in terms.items()
        }

    def update(self, backbone: nn.Module, terms: Losses, momentum: float) -> None:
        """Update theta_t <- m theta_t + (1 - m) theta_s, after the optimizer step."""
        if self.frozen:
            return
        ema_update_(self.backbone, backbone, momentum)
        for label, modules in self.modules.items():
            for name, module in modules.items():
                ema_update_(module, terms[label].get_submodule(name), momentum)

    def parts(self) -> dict[str, nn.Module]:
        """Return the backbone and the modules of the losses by name."""
        parts = {f"{label}.{name}": module for label, own in self.modules.items() for name, module in own.items()}
        return {"backbone": self.backbone, **parts}

    def tensors(self) -> dict[str, Tensor]:
        """Return all weights by name, for a checkpoint."""
        return tensors_of(self.parts())


def tensors_of(modules: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """Return the weights of several modules as {"module.tensor": value}."""
    return {f"{name}.{key}": value for name, module in modules.items() for key, value in module.state_dict().items()}


def with_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the entries whose name starts with `prefix`, without the prefix."""
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
