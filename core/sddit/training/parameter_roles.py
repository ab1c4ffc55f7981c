"""Ask the backbone and the losses for the roles of their parameters, and split groups of parameters by role."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args

from torch import Tensor, nn

from sddit.backbones import Backbone
from sddit.errors import error, one_of
from sddit.interfaces import ParameterRole, Role
from sddit.losses import LossTerm
from sddit.training.student import Student

ROLES: tuple[str, ...] = get_args(Role)


def parameter_roles(student: Student) -> dict[Tensor, ParameterRole]:
    """Return the role of every trained parameter. One that losses share has the role that the first of them states."""
    owners: dict[str, Backbone | LossTerm] = {"backbone": student.backbone}
    owners |= {f"loss.{label}": term for label, term in student.terms.items()}
    roles: dict[Tensor, ParameterRole] = {}
    for owner, module in owners.items():
        for parameter, role in roles_of(module, owner).items():
            roles.setdefault(parameter, role)
    return roles


def roles_of(module: Backbone | LossTerm, owner: str) -> dict[Tensor, ParameterRole]:
    """Return the roles that a backbone or a loss states. Raises SD-P220 for one that is not possible."""
    stated: dict[Tensor, ParameterRole] = {}
    for name, parameter in named_trained(module):
        role = module.parameter_role(name, parameter)
        if problem := role_problem(role, parameter):
            raise error(
                "SD-P220",
                f"parameter_role states what is not possible for {name}: {problem}",
                where=owner,
                got=f"{role!r} for a parameter of shape {tuple(parameter.shape)}",
                expect=f"ParameterRole with one of {', '.join(ROLES)}; a matrix has two dimensions",
            )
        stated[parameter] = role
    return stated


def named_trained(module: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [(name, parameter) for name, parameter in module.named_parameters() if parameter.requires_grad]


def role_problem(role: Any, parameter: Tensor) -> str:
    """Return why a parameter cannot have a role; empty if it can."""
    if not isinstance(role, ParameterRole):
        return "not a ParameterRole"
    if role.role not in ROLES:
        return f"no role {role.role!r}: {one_of(role.role, ROLES)}"
    if role.role == "matrix" and parameter.ndim != 2:
        return "a matrix has two dimensions"
    if role.stacked < 1 or (role.stacked > 1 and (role.role != "matrix" or parameter.shape[0] % role.stacked)):
        return f"it does not hold {role.stacked} matrices of equal size"
    return ""


def split_by_role(group: Mapping[str, Any], roles: Mapping[Tensor, ParameterRole]) -> list[dict[str, Any]]:
    """Return a group as one group per role."""
    members: dict[ParameterRole, list[Tensor]] = {}
    for parameter in group["params"]:
        members.setdefault(roles[parameter], []).append(parameter)
    return [{**group, "params": params, "role": role.role, "stacked": role.stacked} for role, params in members.items()]
