"""Register samplers of the probability-flow ODE with EDM's churn (arXiv:2206.00364), and guidance."""

from __future__ import annotations

from sddit import Registry, hookimpl
from sddit.interfaces import Guidance, Sampler
from sddit_heun.params import (
    AutoguidanceParams,
    CFGParams,
    EulerParams,
    HeunParams,
    InternalParams,
    NoGuidanceParams,
)


@hookimpl
def register_samplers(registry: Registry[Sampler]) -> None:
    registry.add(
        "heun",
        "sddit_heun.samplers:Heun",
        params=HeunParams,
        summary="Second-order steps along the probability-flow ODE, with optional churn: EDM's sampler.",
        paper="arXiv:2206.00364",
        checks={
            "order of convergence": "sddit_heun.checks:convergence",
            "the exact flow of known images": "sddit_heun.checks:trajectory",
            "churn keeps the mean and variance of known images": "sddit_heun.checks:churned",
            "the published implementation": "sddit_heun.checks:published_runs",
        },
    )
    registry.add(
        "euler",
        "sddit_heun.samplers:Euler",
        params=EulerParams,
        summary="First-order steps along the probability-flow ODE, with optional churn.",
        paper="arXiv:2206.00364",
        checks={
            "order of convergence": "sddit_heun.checks:convergence",
            "the exact flow of known images": "sddit_heun.checks:trajectory",
        },
    )


@hookimpl
def register_guidances(registry: Registry[Guidance]) -> None:
    registry.add(
        "none",
        "sddit_heun.guidance:NoGuidance",
        params=NoGuidanceParams,
        summary="No guidance: the conditional prediction.",
    )
    registry.add(
        "cfg",
        "sddit_heun.guidance:ClassifierFree",
        params=CFGParams,
        summary="Classifier-free guidance: constant or power-cosine, optionally limited to noise levels and channels.",
        paper="arXiv:2207.12598",
        checks={
            "linear in the scale": "sddit_heun.checks:linear",
            "the scale that grows as noise falls": "sddit_heun.checks:power_cosine",
            "the published implementations": "sddit_heun.checks:published_scales",
        },
    )
    registry.add(
        "internal",
        "sddit_heun.guidance:Internal",
        params=InternalParams,
        summary="Guidance away from an auxiliary head of the same network, in one evaluation; classifier-free on top.",
        paper="arXiv:2512.24176",
        checks={"the extrapolation from the head": "sddit_heun.checks:internal"},
    )
    registry.add(
        "autoguidance",
        "sddit_heun.guidance:Autoguidance",
        params=AutoguidanceParams,
        summary="Guidance away from a weaker network: another run, checkpoint or EMA.",
        paper="arXiv:2406.02507",
        checks={"the extrapolation from the weaker network": "sddit_heun.checks:autoguided"},
    )
