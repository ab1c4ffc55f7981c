"""Complete and clip gradients, and set the learning rate."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from sddit.distributed.parallel import full_tensor
from sddit.interfaces import OptimizerParams
from sddit.value_schedules import Ramp, step_of, value_at


def complete_gradients(optimizer: torch.optim.Optimizer, parameters: list[Tensor]) -> None:
    """Fill missing gradients with zeros for parameters with optimizer state, so that their moments keep decaying.

    One that never had a gradient is skipped: its moments begin when it starts to learn, as for frozen prototypes.
    """
    for parameter in parameters:
        if parameter.grad is None and parameter in optimizer.state:
            parameter.grad = torch.zeros_like(parameter)


def drop_unused_gradients(root: nn.Module, optimizer: torch.optim.Optimizer, used: list[bool]) -> None:
    """Remove DDP's zeros for parameters without a gradient on any rank, so that their moments do not start.

    One process alone has no gradient for them either. `used` is empty without DDP.
    """
    trained = [parameter for parameter in root.parameters() if parameter.requires_grad] if used else []
    for parameter, has_gradient in zip(trained, used, strict=True):
        if not has_gradient and parameter not in optimizer.state:
            parameter.grad = None


def gradient_norm(parameters: list[Tensor]) -> Tensor:
    """Return the norm of the gradient with respect to the parameters that have one. Every rank must call this."""
    return full_tensor(torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None]))


def clip_gradients(settings: OptimizerParams, groups: Mapping[str, list[Tensor]], norm: Tensor) -> None:
    """Clip the gradient to the recipe's maximum norm: each of the groups, all of norm `norm`, or each parameter.

    With `group`, the gradient of a loss's heads has no influence on the clipping of the network.
    """
    if settings.clip is None:
        return
    if settings.clip_scope == "group":
        for parameters in groups.values():
            torch.nn.utils.clip_grads_with_norm_(parameters, settings.clip, gradient_norm(parameters))
        return
    every = [parameter for parameters in groups.values() for parameter in parameters]
    if settings.clip_scope == "all":
        torch.nn.utils.clip_grads_with_norm_(every, settings.clip, norm)
        return
    for parameter in every:
        if parameter.grad is not None:
            torch.nn.utils.clip_grad_norm_(parameter, settings.clip)


def warmup_factor(settings: OptimizerParams, step: int, total: int) -> float:
    """Return the fraction of the learning rate at `step` of the warm-up, 1 after it."""
    warmup = step_of(settings.warmup, total)
    if settings.warmup_shape == "linspace":
        return value_at(Ramp(start=0.0, end=1.0, shape="linspace", until=settings.warmup), step, total)
    return min(1.0, (step + 1) / warmup if warmup > 0 else 1.0)


def set_learning_rate(optimizer: torch.optim.Optimizer, settings: OptimizerParams, step: int, total: int) -> None:
    """Set lr(step) with its warm-up, times each group's factor."""
    rate = value_at(settings.lr, step, total) * warmup_factor(settings, step, total)
    for group in optimizer.param_groups:
        group["lr"] = rate * group["lr_scale"]


def group_numbers(optimizer: torch.optim.Optimizer) -> list[dict[str, float]]:
    """Return the plain numbers in each group: settings, and the counters that some optimizers keep there."""
    return [
        {key: value for key, value in group.items() if type(value) in (int, float)} for group in optimizer.param_groups
    ]
