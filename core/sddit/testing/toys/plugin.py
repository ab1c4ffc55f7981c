"""Register toy components of every kind, so that tests need no other plugin. This module imports no torch.

A recipe of toys trains in milliseconds:

    with using_host(toy_host()):
        recipe = resolve(write(tmp_path / "toy.toml", TOY_RECIPE))
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sddit.data.declared import DeclaredParams
from sddit.interfaces import Dataset, Params
from sddit.plugins.hookspecs import hookimpl
from sddit.plugins.host import Host
from sddit.plugins.registry import Registry
from sddit.testing.toys import params as settings

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


TOYS: dict[str, dict[str, type[Params]]] = {
    "backbones": {"toy": settings.ToyBackboneParams},
    "noise_schedules": {"toy": settings.ToyScheduleParams},
    "pair_samplers": {"toy": settings.ToyPairsParams},
    "losses": {"toy": settings.ToyLossParams, "toy_agreement": settings.ToyAgreementParams},
    "samplers": {"toy": settings.ToySamplerParams},
    "guidances": {"toy": settings.ToyGuidanceParams},
    "attention": {"toy": settings.ToyAttentionParams},
    "optimizers": {"toy": settings.ToyOptimizerParams},
    "datasets": {"toy": settings.ToyDatasetParams},
    "codecs": {"toy": settings.ToyCodecParams},
    "features": {"toy": settings.ToyFeaturesParams},
    "trackers": {"toy": settings.ToyTrackerParams},
}
"""Names and settings of the toys, by kind. The settings of `ToyLoss` are `ToyLossParams`."""


def hook_of(kind: str) -> Callable[[Registry[Any]], None]:
    """Return the hook that registers the toys of a kind."""
    module = f"sddit.testing.toys.{'network' if kind in ('backbones', 'attention') else 'components'}"
    formats = {"toy": f"{module}:ToyFormat"} if kind == "backbones" else {}

    @hookimpl
    def register(registry: Registry[Any]) -> None:
        for name, params in TOYS[kind].items():
            factory = f"{module}:{params.__name__.removesuffix('Params')}"
            registry.add(name, factory, params=params, summary=params.__doc__ or "", formats=formats)

    return register


globals().update({f"register_{kind}": hook_of(kind) for kind in TOYS})


class DeclaredPlugin:
    """Register the data set without images as `sddit/declared`, the name that exported recipes use."""

    @hookimpl
    def register_datasets(self, registry: Registry[Dataset]) -> None:
        factory = "sddit.data.preview:declared"
        registry.add("declared", factory, params=DeclaredParams, summary="Shapes without images.")


def toy_host() -> Host:
    """Return a host with the toys, the data set `sddit/declared` and no other plugin."""
    from sddit.testing.toys import plugin

    host = Host(builtins=())
    host.add("sddit", DeclaredPlugin())
    host.add("toy", plugin)
    return host
