"""Check what holds for every optimizer."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from sddit.testing import fixtures
from sddit.testing.case import Case

Weights = dict[str, Tensor]
RATE = 1e-2


def examine(case: Case) -> None:
    """Minimize a quadratic with two groups of different learning rates."""
    with case.trying("it was built"):
        weights = new_weights()
        optimizer = over(case, weights)
        if not case.instance(optimizer, torch.optim.Optimizer, "it is not a torch optimizer"):
            return
        scales = {group.get("lr_scale") for group in optimizer.param_groups}
        case.expect(scales == {1.0, 0.0}, "groups lose their lr_scale", got=scales, fix="keep every key of a group")
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        case.expect(held == set(map(id, weights.values())), "it does not hold exactly the weights it was given")
        with case.trying("it took steps"):
            still = {name: weight for name, weight in weights.items() if name.startswith("still")}
            with case.unchanged(lambda: still, "a weight moves at a rate of 0", "multiply every change by lr"):
                first, last = descend(optimizer, weights, steps=30)
            what = "the loss of a quadratic grows in thirty steps"
            case.expect(last < first, what, got=f"{first:.4g} to {last:.4g}")
            examine_state(case, optimizer, weights)
            examine_groups(case)


def new_weights() -> Weights:
    """Return two weights to be trained and two of learning rate 0."""
    names = {"moving 0": (4, 3), "moving 1": (5,), "still 2": (3, 3), "still 3": (2,)}
    return {name: fixtures.numbers(*shape, key=int(name[-1])).requires_grad_() for name, shape in names.items()}


def over(case: Case, weights: Weights) -> torch.optim.Optimizer:
    """Return the optimizer over these weights, in two groups."""
    members = list(weights.values())
    groups = [{"params": members[:2], "lr_scale": 1.0}, {"params": members[2:], "lr_scale": 0.0}]
    optimizer: torch.optim.Optimizer = case.build()(groups, torch.device("cpu"))
    return optimizer


def examine_groups(case: Case) -> None:
    """Check that a group of heads does not change the steps of the network, by a norm of all gradients for example."""
    alone, together = new_weights(), new_weights()
    members = list(alone.values())[:2]
    descend(case.build()([{"params": members, "lr_scale": 1.0}], torch.device("cpu")), alone, 3)
    descend(over(case, together), together, 3)
    same = all(torch.equal(alone[name], together[name]) for name in alone if name.startswith("moving"))
    fix = "compute norms and averages for each parameter or group"
    case.expect(same, "the steps of a group depend on the gradients of another", fix=fix)


def descend(optimizer: torch.optim.Optimizer, weights: Weights, steps: int) -> tuple[float, float]:
    """Take steps on the loss sum (w - 3)^2, and return its first and last value."""
    losses = []
    for _ in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = RATE * group["lr_scale"]
        optimizer.zero_grad(set_to_none=True)
        loss = torch.stack([(weight - 3).square().sum() for weight in weights.values()]).sum()
        torch.autograd.backward(loss)
        optimizer.step()
        losses.append(loss.item())
    return losses[0], losses[-1]


def examine_state(case: Case, optimizer: torch.optim.Optimizer, weights: Weights) -> None:
    """Check the stated size of the state, and that a restored optimizer continues identically."""
    state = [value for entry in optimizer.state.values() for value in entry.values() if isinstance(value, Tensor)]
    kept = sum(value.numel() for value in state if value.numel() > 1)
    count = kept / sum(weight.numel() for weight in weights.values())
    stated = case.params.state_per_parameter
    case.expect(count == stated, "state_per_parameter is not what it keeps", got=stated, expect=f"{count:g}")
    copies = {name: weight.detach().clone().requires_grad_() for name, weight in weights.items()}
    restored = over(case, copies)
    restored.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    descend(optimizer, weights, 3)
    descend(restored, copies, 3)
    same = all(torch.equal(copies[name], weight) for name, weight in weights.items())
    case.expect(same, "a restored optimizer continues differently", fix="keep all state in state_dict()")
