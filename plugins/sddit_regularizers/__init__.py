"""Register losses without a target: dispersive, repulsor, contrastive flow matching, and diversity of blocks."""

from __future__ import annotations

from sddit import Registry, hookimpl
from sddit.interfaces import Loss
from sddit_regularizers.params import ContrastiveParams, DispersiveParams, DiversityParams, RepulsorParams


@hookimpl
def register_losses(registry: Registry[Loss]) -> None:
    registry.add(
        "dispersive",
        "sddit_regularizers.dispersive:Dispersive",
        params=DispersiveParams,
        summary="Separation of the features of all images of a batch, without positive pairs.",
        paper="arXiv:2506.09027",
        checks={
            "equal and distant images": "sddit_regularizers.checks:dispersion",
            "each variant is its sum over pairs": "sddit_regularizers.checks:pairwise",
            "two processes equal one": "sddit_regularizers.checks:dispersive_ranks",
        },
    )
    registry.add(
        "repulsor",
        "sddit_regularizers.repulsor:Repulsor",
        params=RepulsorParams,
        summary="Repulsion of the projected features of an image from a queue of past ones.",
        paper="arXiv:2512.08648",
        checks={
            "the queue holds the newest projections": "sddit_regularizers.checks:queue",
            "equal and distant projections": "sddit_regularizers.checks:repulsion",
        },
    )
    registry.add(
        "contrastive",
        "sddit_regularizers.contrastive:Contrastive",
        params=ContrastiveParams,
        summary="Contrastive flow matching: distance of the output from the target of another image.",
        paper="arXiv:2506.05350",
        checks={
            "the optimum on two points": "sddit_regularizers.checks:two_points",
            "partners": "sddit_regularizers.checks:partners",
        },
    )
    registry.add(
        "diversity",
        "sddit_regularizers.diversity:Diversity",
        params=DiversityParams,
        summary="DiverseDiT's loss between blocks, gated by its own value.",
        paper="arXiv:2603.04239",
        checks={"equal and orthogonal blocks, and the gate": "sddit_regularizers.checks:diversity"},
    )
