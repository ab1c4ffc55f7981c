"""Define Muon for the matrices of a network, with AdamW for its other parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from sddit.distributed.parallel import full_tensor, shard_like
from sddit.errors import SdditError, error
from sddit.value_schedules import value_at
from sddit_standard.params import MuonParams, old_torch_problem

SETTINGS = (
    "momentum",
    "nesterov",
    "ns_steps",
    "adjust_lr_fn",
    "weight_decay",
)  # that torch.optim.Muon takes as they are


class Muon:
    """Muon for the parameters of role `matrix`, AdamW for all others."""

    def __init__(self, params: MuonParams) -> None:
        self.params = params

    def __call__(self, groups: Sequence[Mapping[str, Any]], device: torch.device) -> torch.optim.Optimizer:
        """groups: dicts with `params`, `lr_scale`, `head`, `role` and `stacked`.

        Raises SD-P211 for a torch without Muon, SD-R108 for a network without matrices.
        """
        if not hasattr(torch.optim, "Muon"):
            raise SdditError(old_torch_problem(torch.__version__))
        matrices = [dict(group) for group in groups if group["role"] == "matrix"]
        if not matrices:
            raise error(
                "SD-R108",
                "muon has nothing to update: no parameter is a matrix",
                where="optimizer.name",
                expect="a backbone with Linear layers in its blocks, or whose parameter_role states its matrices",
                fix='optimizer.name = "adamw"',
            )
        lr = value_at(self.params.lr, 0, 1)
        muon = torch.optim.Muon(matrices, lr=lr, **{key: getattr(self.params, key) for key in SETTINGS})
        others = [self._for_adamw(group) for group in groups if group["role"] != "matrix"]
        settings: dict[str, Any] = {"lr": lr, "betas": self.params.betas, "eps": self.params.eps, "fused": True}
        adamw = torch.optim.AdamW(others, **settings) if others else None
        return MuonWithAdamW(muon, adamw, split=self.params.split_qkv)

    def _for_adamw(self, group: Mapping[str, Any]) -> dict[str, Any]:
        decay = 0.0 if group["role"] == "vector" else self.params.weight_decay
        return {**group, "lr_scale": group["lr_scale"] * self.params.adamw_lr, "weight_decay": decay}


class MuonWithAdamW(torch.optim.Optimizer):
    """Two optimizers with one list of groups and one state, so that a training loop treats them as one.

    `split` orthogonalizes the matrices that a parameter holds separately. A matrix that is sharded over processes is
    gathered for its update, one at a time; each process keeps its shard of the result and of the momentum.
    """

    def __init__(self, muon: torch.optim.Optimizer, adamw: torch.optim.Optimizer | None, *, split: bool) -> None:
        self.muon, self.adamw, self.split = muon, adamw, split
        super().__init__([*muon.param_groups, *(adamw.param_groups if adamw else ())], {})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if self.adamw is not None:  # again at each step: a restored state is another object
            self.adamw.param_groups = [group for group in self.param_groups if group["role"] != "matrix"]
            self.adamw.state = self.state
            self.adamw.step()
        for group in self.param_groups:
            for parameter in group["params"] if group["role"] == "matrix" else ():
                if parameter.grad is not None:
                    self._update(parameter, group)
        return loss

    def _update(self, parameter: Tensor, group: Mapping[str, Any]) -> None:
        """Update one matrix, or the matrices that are stacked in it, by Muon."""
        state = self.state[parameter]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        own = parameter.detach(), state["momentum_buffer"]
        weight, momentum = map(full_tensor, own)
        assert parameter.grad is not None
        count = group["stacked"] if self.split else 1
        matrices = weight.chunk(count)  # views: an update of them is one of `weight`
        for matrix, gradient in zip(matrices, full_tensor(parameter.grad).chunk(count), strict=True):
            matrix.grad = gradient
        self.muon.param_groups = [{**group, "params": list(matrices)}]
        self.muon.state.clear()
        for matrix, part in zip(matrices, momentum.chunk(count), strict=True):
            self.muon.state[matrix]["momentum_buffer"] = part
        self.muon.step()
        self.muon.state.clear()
        for shard, full in zip(own, (weight, momentum), strict=True):
            if shard is not full:
                shard.copy_(shard_like(shard, full))
