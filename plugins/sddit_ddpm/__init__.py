"""Register DDPM (arXiv:2006.11239) as used by DiT: noise schedule, hybrid loss, ancestral and DDIM samplers."""

from __future__ import annotations

from sddit import Registry, hookimpl
from sddit.interfaces import Loss, NoiseSchedule, Sampler
from sddit_ddpm.params import AncestralParams, DDIMParams, DDPMParams, HybridParams


@hookimpl
def register_noise_schedules(registry: Registry[NoiseSchedule]) -> None:
    registry.add(
        "ddpm",
        "sddit_ddpm.schedule:DDPM",
        params=DDPMParams,
        summary="A chain of timesteps with given betas, and a network that predicts noise and variance: DiT's.",
        paper="arXiv:2006.11239",
        checks={
            "trained noise levels are recovered": "sddit_ddpm.checks:levels",
            "the cosine chain in closed form": "sddit_ddpm.checks:cosine",
            "the published implementation": "sddit_ddpm.checks:published_tables",
        },
    )


@hookimpl
def register_losses(registry: Registry[Loss]) -> None:
    registry.add(
        "hybrid",
        "sddit_ddpm.loss:Hybrid",
        params=HybridParams,
        summary="Squared error of the noise plus the variational bound that trains the variance: DiT's and MDT's loss.",
        paper="arXiv:2102.09672",
        checks={
            "likelihoods add up to 1": "sddit_ddpm.checks:likelihood",
            "several views": "sddit_ddpm.checks:several_views",
            "weights by signal-to-noise ratio": "sddit_ddpm.checks:min_snr",
            "the published implementations": "sddit_ddpm.checks:published_losses",
        },
    )


@hookimpl
def register_samplers(registry: Registry[Sampler]) -> None:
    registry.add(
        "ancestral",
        "sddit_ddpm.samplers:Ancestral",
        params=AncestralParams,
        summary="The reverse chain with its learned variance: DiT's sampler.",
        paper="arXiv:2102.09672",
        checks={
            "known images keep their mean and variance": "sddit_ddpm.checks:spread",
            "the published implementation": "sddit_ddpm.checks:published_ancestral",
        },
    )
    registry.add(
        "ddim",
        "sddit_ddpm.samplers:DDIM",
        params=DDIMParams,
        summary="First-order steps with an adjustable amount of fresh noise, none by default.",
        paper="arXiv:2010.02502",
        checks={
            "order of convergence": "sddit_ddpm.checks:convergence",
            "the published implementation": "sddit_ddpm.checks:published_ddim",
        },
    )
