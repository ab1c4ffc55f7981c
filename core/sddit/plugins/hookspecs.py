"""One documented hook per registry. A plugin implements the ones it has something for.

from sddit import Registry, hookimpl
from sddit.interfaces import Loss

@hookimpl
def register_losses(registry: Registry[Loss]) -> None:
    registry.add("mine", "my_package.loss:MyLoss", params=MyParams, summary="...")
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pluggy

from sddit import interfaces as face
from sddit.plugins.registry import Registry

if TYPE_CHECKING:
    from sddit import Backbone

hookspec = pluggy.HookspecMarker("sddit")
hookimpl = pluggy.HookimplMarker("sddit")


class Registries:
    """All registries, by kind. The slot is the table of a recipe that chooses from it."""

    def __init__(self) -> None:
        self.backbones: Registry[Backbone] = Registry("backbones", "backbone", face.BackboneParams)
        self.noise_schedules: Registry[face.NoiseSchedule] = Registry(
            "noise_schedules", "noise_schedule", face.NoiseScheduleParams
        )
        self.pair_samplers: Registry[face.PairSampler] = Registry(
            "pair_samplers", "pair_sampler", face.PairSamplerParams
        )
        self.losses: Registry[face.Loss] = Registry("losses", "loss", face.LossParams)
        self.samplers: Registry[face.Sampler] = Registry("samplers", "sampler", face.SamplerParams)
        self.attention: Registry[face.Attention] = Registry("attention", "attention", face.AttentionParams)
        self.guidances: Registry[face.Guidance] = Registry("guidances", "guidance", face.GuidanceParams)
        self.optimizers: Registry[face.Optimizer] = Registry("optimizers", "optimizer", face.OptimizerParams)
        self.datasets: Registry[face.Dataset] = Registry("datasets", "dataset", face.DatasetParams)
        self.codecs: Registry[face.Codec] = Registry("codecs", "codec", face.CodecParams)
        self.features: Registry[face.FeatureExtractor] = Registry("features", "features", face.FeatureParams)
        self.trackers: Registry[face.Tracker] = Registry("trackers", "tracker", face.TrackerParams)
        self.checks: Registry[face.Check] = Registry("checks", "check", face.Params)

    def all(self) -> dict[str, Registry[Any]]:
        """{kind: registry}, in the order a reader wants them."""
        return {kind: value for kind, value in vars(self).items() if isinstance(value, Registry)}


@hookspec
def register_backbones(registry: Registry[Backbone]) -> None:
    """Add networks; a recipe uses one as `[backbone] name = "..."`."""


@hookspec
def register_noise_schedules(registry: Registry[face.NoiseSchedule]) -> None:
    """Add noise schedules with their preconditioning; `[noise_schedule] name = "..."`."""


@hookspec
def register_pair_samplers(registry: Registry[face.PairSampler]) -> None:
    """Add rules for which noisy views of a batch exist; `[pair_sampler] name = "..."`."""


@hookspec
def register_losses(registry: Registry[face.Loss]) -> None:
    """Add losses; a recipe uses one as `[loss.<label>] name = "..."`."""


@hookspec
def register_samplers(registry: Registry[face.Sampler]) -> None:
    """Add samplers, from noise to images; `[sampler] name = "..."`."""


@hookspec
def register_attention(registry: Registry[face.Attention]) -> None:
    """Add attention kernels; `[attention] name = "..."`."""


@hookspec
def register_guidances(registry: Registry[face.Guidance]) -> None:
    """Add guidance rules for sampling; `[guidance] name = "..."`."""


@hookspec
def register_optimizers(registry: Registry[face.Optimizer]) -> None:
    """Add optimizers; `[optimizer] name = "..."`."""


@hookspec
def register_datasets(registry: Registry[face.Dataset]) -> None:
    """Add data sets; `[dataset] name = "..."`."""


@hookspec
def register_codecs(registry: Registry[face.Codec]) -> None:
    """Add codecs, from images to latents and back; `[codec] name = "..."`."""


@hookspec
def register_features(registry: Registry[face.FeatureExtractor]) -> None:
    """Add feature extractors for metrics; `[evaluate] features = ["..."]`."""


@hookspec
def register_trackers(registry: Registry[face.Tracker]) -> None:
    """Add trackers; `[tracker.<label>] name = "..."`."""


@hookspec
def register_checks(registry: Registry[face.Check]) -> None:
    """Add numerical checks that belong to no other component; `sddit-run verify` runs them."""
