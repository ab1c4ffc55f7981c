"""Check what holds for every optimizer."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from sddit.interfaces import Matrix, ParameterRole
from sddit.testing import fixtures
from sddit.testing.case import Case
from sddit.training.parameter_roles import split_by_role

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
    groups = [group for begin, scale in ((0, 1.0), (2, 0.0)) for group in groups_of(case, members[begin:][:2], scale)]
    optimizer: torch.optim.Optimizer = case.build()(groups, torch.device("cpu"))
    return optimizer


def groups_of(case: Case, members: list[Tensor], scale: float) -> list[dict[str, Any]]:
    """Return weights as one group, or as one per role if the settings say `takes_roles`."""
    group = {"params": members, "lr_scale": scale, "head": False}
    return split_by_role(group, {weight: role_of(weight) for weight in members}) if case.params.takes_roles else [group]


def role_of(weight: Tensor) -> ParameterRole:
    return ParameterRole("matrix" if weight.ndim == 2 else "vector")


def examine_groups(case: Case) -> None:
    """Check that a group of heads does not change the steps of the network, by a norm of all gradients for example."""
    alone, together = new_weights(), new_weights()
    members = list(alone.values())[:2]
    descend(case.build()(groups_of(case, members, 1.0), torch.device("cpu")), alone, 3)
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
    matrices = [Matrix(*weight.shape) for weight in weights.values() if weight.ndim == 2]
    stated = case.params.state_size(sum(weight.numel() for weight in weights.values()), matrices)
    key = "state_size" if case.params.takes_roles else "state_per_parameter"
    case.expect(kept == stated, f"{key} is not what it keeps", got=f"{stated} numbers", expect=f"{kept} numbers")
    copies = {name: weight.detach().clone().requires_grad_() for name, weight in weights.items()}
    restored = over(case, copies)
    restored.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    descend(optimizer, weights, 3)
    descend(restored, copies, 3)
    same = all(torch.equal(copies[name], weight) for name, weight in weights.items())
    case.expect(same, "a restored optimizer continues differently", fix="keep all state in state_dict()")
