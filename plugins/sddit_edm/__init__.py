"""Register the EDM (arXiv:2206.00364) and flow (arXiv:2401.08740) noise schedules, and the denoising loss."""

from __future__ import annotations

from sddit import Registry, hookimpl
from sddit.interfaces import Loss, NoiseSchedule
from sddit_edm.cosine_params import CosineFlowParams
from sddit_edm.params import DenoisingParams, EDMParams, FlowParams


@hookimpl
def register_noise_schedules(registry: Registry[NoiseSchedule]) -> None:
    registry.add(
        "edm",
        "sddit_edm.schedule:EDM",
        params=EDMParams,
        summary="x = x0 + sigma eps with normally distributed ln sigma in training, and EDM's preconditioning.",
        paper="arXiv:2206.00364",
        checks={
            "its preconditioning has unit variance": "sddit_edm.checks:identities",
            "noise grows with t, and t is recovered": "sddit_edm.checks:levels",
            "levels in training": "sddit_edm.checks:training_levels",
            "the published implementation": "sddit_edm.checks:published_schedule",
        },
    )
    registry.add(
        "flow",
        "sddit_edm.flow:Flow",
        params=FlowParams,
        summary="x = (1 - t) x0 + t eps, and a network that predicts the velocity eps - x0: SiT's linear path.",
        paper="arXiv:2401.08740",
        checks={
            "noise grows with t, and t is recovered": "sddit_edm.checks:levels",
            "times in training": "sddit_edm.checks:training_times",
            "velocity and clean image agree": "sddit_edm.checks:velocities",
        },
    )

    registry.add(
        "cosine_flow",
        "sddit_edm.cosine_flow:CosineFlow",
        params=CosineFlowParams,
        summary="x = cos(pi t / 2) x0 + sin(pi t / 2) eps, and a network that predicts the velocity dx/dt.",
        paper="arXiv:2401.08740",
        checks={"noise grows with t, and t is recovered": "sddit_edm.checks:levels"},
    )


@hookimpl
def register_losses(registry: Registry[Loss]) -> None:
    registry.add(
        "denoising",
        "sddit_edm.loss:Denoising",
        params=DenoisingParams,
        summary="Mean squared error of the network's output, or of the x0, noise or v derived from it.",
        paper="arXiv:2206.00364",
        checks={
            "the zero network has a loss of 1": "sddit_edm.checks:zero_network",
            "weights by signal-to-noise ratio": "sddit_edm.checks:weights",
            "the published implementations": "sddit_edm.checks:published_loss",
        },
    )
