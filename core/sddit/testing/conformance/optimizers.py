"""Check what holds for every optimizer."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sddit.testing import fixtures as things
from sddit.testing.kit import Case, Findings

CPU = torch.device("cpu")
RATE = 1e-2


def examine(case: Case, findings: Findings) -> None:
    """Try an optimizer on a bowl, with two groups of different rates."""
    with findings.trying("it was built"):
        optimizer, weights = started(case)
        if not findings.expect(
            isinstance(optimizer, torch.optim.Optimizer), "it is not a torch optimizer", got=type(optimizer).__name__
        ):
            return
        scales = {group.get("lr_scale") for group in optimizer.param_groups}
        findings.expect(
            scales == {1.0, 0.0}, "groups lose their lr_scale", got=str(scales), fix="keep every key of a group"
        )
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        findings.expect(held == {id(w) for w in weights}, "it does not hold exactly the weights it was given")
        with findings.trying("it took steps"):
            before = things.copied(dict(enumerate_weights(weights)))
            first, last = descend(optimizer, weights, steps=30)
            findings.expect(last < first, "thirty steps down a bowl go up", got=f"{first:.4g} to {last:.4g}")
            still = {name: weight for name, weight in before.items() if name.startswith("still")}
            things.unchanged(
                findings,
                still,
                dict(enumerate_weights(weights)),
                "a weight moves at a rate of 0",
                "multiply every change by lr",
            )
            examine_state(case, optimizer, weights, findings)


def started(case: Case) -> tuple[Any, list[Tensor]]:
    """Return the optimizer over weights that move and weights that do not."""
    weights = [
        things.numbers(*shape, key=key).requires_grad_() for key, shape in enumerate([(4, 3), (5,), (3, 3), (2,)])
    ]
    groups: list[Mapping[str, Any]] = [
        {"params": weights[:2], "lr_scale": 1.0},
        {"params": weights[2:], "lr_scale": 0.0},
    ]
    return case.build()(groups, CPU), weights


def enumerate_weights(weights: list[Tensor]) -> list[tuple[str, Tensor]]:
    return [(f"{'moving' if number < 2 else 'still'} {number}", weight) for number, weight in enumerate(weights)]


def descend(optimizer: torch.optim.Optimizer, weights: list[Tensor], steps: int) -> tuple[float, float]:
    """Heights of the bowl sum (w - 3)^2 before and after."""
    heights = []
    for _ in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = RATE * group["lr_scale"]
        optimizer.zero_grad(set_to_none=True)
        height = torch.stack([(weight - 3).square().sum() for weight in weights]).sum()
        torch.autograd.backward(height)
        optimizer.step()
        heights.append(height.item())
    return heights[0], heights[-1]


def examine_state(case: Case, optimizer: torch.optim.Optimizer, weights: list[Tensor], findings: Findings) -> None:
    """As many numbers a weight as stated; a restored one continues identically."""
    kept = [
        value
        for state in optimizer.state.values()
        for value in state.values()
        if isinstance(value, Tensor) and value.numel() > 1
    ]
    count = sum(value.numel() for value in kept) / sum(weight.numel() for weight in weights)
    stated = case.params.state_per_parameter
    findings.expect(count == stated, "state_per_parameter is not what it keeps", got=str(stated), expect=f"{count:g}")
    twin, copies = started(case)
    with torch.no_grad():
        for mine, weight in zip(copies, weights, strict=True):
            mine.copy_(weight)
    twin.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    descend(optimizer, weights, 3)
    descend(twin, copies, 3)
    same = all(torch.equal(mine, weight) for mine, weight in zip(copies, weights, strict=True))
    findings.expect(same, "a restored optimizer continues differently", fix="keep all state in state_dict()")
