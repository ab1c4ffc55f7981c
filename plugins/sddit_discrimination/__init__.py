"""SD-DiT (arXiv:2403.17004) as we read it: pairs along one ODE trajectory, and their discrimination."""

from __future__ import annotations

from sddit import Registry, hookimpl
from sddit.interfaces import Loss, PairSampler
from sddit_discrimination.params import DiscriminationParams, PfOdeParams


@hookimpl
def register_pair_samplers(registry: Registry[PairSampler]) -> None:
    registry.add(
        "pf_ode",
        "sddit_discrimination.pairs:PfOde",
        params=PfOdeParams,
        summary="A noisy masked student view and a nearly clean teacher view on one probability-flow ODE trajectory.",
        paper="arXiv:2403.17004",
        checks={"both views lie on one ray": "sddit_discrimination.checks:ray"},
    )


@hookimpl
def register_losses(registry: Registry[Loss]) -> None:
    registry.add(
        "discrimination",
        "sddit_discrimination.loss:Discrimination",
        params=DiscriminationParams,
        summary="Teacher-student discrimination between two noise levels of one image, over prototypes.",
        paper="arXiv:2403.17004",
        checks={
            "the teacher is an average and learns nothing": "sddit_discrimination.checks:teacher",
            "cross-entropies": "sddit_discrimination.checks:entropies",
            "the published DINO": "sddit_discrimination.checks:published_losses",
        },
    )
