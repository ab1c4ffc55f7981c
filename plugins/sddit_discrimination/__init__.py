"""Register SD-DiT (arXiv:2403.17004): pairs of views along one ODE trajectory, and the discrimination loss."""

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
        checks={"both views are on one ray from the image": "sddit_discrimination.checks:ray"},
    )


@hookimpl
def register_losses(registry: Registry[Loss]) -> None:
    registry.add(
        "discrimination",
        "sddit_discrimination.loss:Discrimination",
        params=DiscriminationParams,
        summary="Teacher-student discrimination over prototypes, between two noise levels of one image.",
        paper="arXiv:2403.17004",
        checks={
            "the teacher is a moving average without gradient": "sddit_discrimination.checks:teacher",
            "cross-entropies": "sddit_discrimination.checks:entropies",
            "the published DINO": "sddit_discrimination.checks:published_losses",
        },
    )
