"""Toy components of every kind, small enough for tests of the core alone. This half is their settings: no torch.

Registered as a plugin named `toy`, they make a recipe that trains in a blink with no other plugin installed:

    with using_host(toy_host()):
        recipe = resolve(write(tmp_path / "toy.toml", TOY_RECIPE))
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sddit import interfaces as face
from sddit.plugins.hookspecs import hookimpl
from sddit.plugins.host import Host
from sddit.plugins.registry import Registry
from sddit.testing.toys.params import (
    ToyAgreementParams,
    ToyAttentionParams,
    ToyBackboneParams,
    ToyDatasetParams,
    ToyFeatureParams,
    ToyGuidanceParams,
    ToyLossParams,
    ToyOptimizerParams,
    ToyPairsParams,
    ToySamplerParams,
    ToyScheduleParams,
    ToyTrackerParams,
)

if TYPE_CHECKING:
    from sddit import Backbone

TOY_RECIPE = """
[backbone]
name = "toy"
[noise_schedule]
name = "toy"
[pair_sampler]
name = "toy"
[loss.denoise]
name = "toy"
[sampler]
name = "toy"
steps = 4
[guidance]
name = "toy"
[attention]
name = "toy"
[dataset]
name = "toy"
[optimizer]
name = "toy"
lr = 1e-3
[train]
steps = 4
batch = 8
"""
"""A recipe of toys: one student view, one denoising term, 4 steps."""

TOY_PAIR_RECIPE = (
    TOY_RECIPE.replace('[pair_sampler]\nname = "toy"', '[pair_sampler]\nname = "toy"\nmask_ratio = 0.5\nteacher = true')
    + """
[loss.agree]
name = "toy_agreement"
weight = 0.5
"""
)
"""The same with a masked student, a teacher, and a term that has a head, a buffer and an averaged module."""


def toy_host() -> Host:
    """Return a host with the toys and no other plugin.

    The data set `sddit/declared`, which exports name, is one of them.
    """
    from sddit.testing.toys import declared_toy
    from sddit.testing.toys import plugin as toys

    host = Host(builtins=())
    host.add("sddit", declared_toy)
    host.add("toy", toys)
    return host


@hookimpl
def register_backbones(registry: Registry[Backbone]) -> None:
    registry.add(
        "toy",
        "sddit.testing.toys.network:ToyBackbone",
        params=ToyBackboneParams,
        summary="A tiny token network with class token, taps and masks.",
        formats={"toy": "sddit.testing.toys.network:ToyFormat"},
    )


@hookimpl
def register_noise_schedules(registry: Registry[face.NoiseSchedule]) -> None:
    registry.add(
        "toy",
        "sddit.testing.toys.components:ToySchedule",
        params=ToyScheduleParams,
        summary="Noise added, x0 predicted.",
    )


@hookimpl
def register_pair_samplers(registry: Registry[face.PairSampler]) -> None:
    registry.add(
        "toy",
        "sddit.testing.toys.components:ToyPairs",
        params=ToyPairsParams,
        summary="A student, and perhaps a teacher.",
    )


@hookimpl
def register_losses(registry: Registry[face.Loss]) -> None:
    registry.add("toy", "sddit.testing.toys.components:ToyLoss", params=ToyLossParams, summary="Squared error of x0.")
    registry.add(
        "toy_agreement",
        "sddit.testing.toys.components:ToyAgreement",
        params=ToyAgreementParams,
        summary="Student tokens against the teacher's.",
    )


@hookimpl
def register_samplers(registry: Registry[face.Sampler]) -> None:
    registry.add("toy", "sddit.testing.toys.components:ToySampler", params=ToySamplerParams, summary="Euler's method.")


@hookimpl
def register_guidances(registry: Registry[face.Guidance]) -> None:
    registry.add("toy", "sddit.testing.toys.components:ToyGuidance", params=ToyGuidanceParams, summary="None.")


@hookimpl
def register_attention(registry: Registry[face.Attention]) -> None:
    registry.add(
        "toy", "sddit.testing.toys.network:ToyAttention", params=ToyAttentionParams, summary="The softmax written out."
    )


@hookimpl
def register_optimizers(registry: Registry[face.Optimizer]) -> None:
    registry.add(
        "toy", "sddit.testing.toys.components:ToyOptimizer", params=ToyOptimizerParams, summary="Adam, decayed weights."
    )


@hookimpl
def register_datasets(registry: Registry[face.Dataset]) -> None:
    registry.add(
        "toy", "sddit.testing.toys.components:ToyDataset", params=ToyDatasetParams, summary="Made of formulas."
    )


@hookimpl
def register_features(registry: Registry[face.FeatureExtractor]) -> None:
    registry.add(
        "toy",
        "sddit.testing.toys.components:ToyFeatures",
        params=ToyFeatureParams,
        summary="Means and standard deviations.",
    )


@hookimpl
def register_trackers(registry: Registry[face.Tracker]) -> None:
    registry.add(
        "toy", "sddit.testing.toys.components:ToyTracker", params=ToyTrackerParams, summary="A list in memory."
    )
