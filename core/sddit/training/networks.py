"""Build the networks of a recipe, with initial weights keyed by parameter name, in the dtype of its precision."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from sddit.backbones import Backbone
from sddit.data import seen_moments
from sddit.diffusion.draws import generator
from sddit.errors import error
from sddit.interfaces.component import component_boundary
from sddit.losses import LossTerm
from sddit.plugins.build_arguments import accepted
from sddit.plugins.mistakes import NO_SUPER
from sddit.recipes.recipe import Recipe
from sddit.recipes.settings import Precision
from sddit.training.findings import definition_of, is_initialized

DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.float32, "fp64": torch.float64}
"""The dtype of weights by precision. bf16 is an autocast over float32 weights."""


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Build modules in `dtype`, tables and constants included."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def build_backbone(recipe: Recipe, *, device: torch.device | str) -> Backbone:
    """Build the network F. Each initial weight is a function of the seed and the parameter's name alone."""
    shapes = recipe.shapes
    with seeded(recipe.seed, "init/backbone"):
        backbone: Backbone = recipe.backbone.build(
            image=shapes.image,
            num_classes=shapes.num_classes,
            outputs=shapes.outputs,
            attention=recipe.attention.build(),
        )
    with component_boundary(recipe.backbone.component.qualified):
        initialize(backbone, Backbone, "backbone", recipe.seed, "init")
    return backbone.to(device)


def build_terms(recipe: Recipe) -> dict[str, LossTerm]:
    """Build the active losses, with their heads."""
    backbone = recipe.backbone.params
    mean, std = seen_moments(recipe.dataset.params, recipe.facts)
    terms: dict[str, LossTerm] = {}
    for label, chosen in recipe.active_losses.items():
        needs = chosen.params.needs()
        taps = {*needs.student.taps, *(needs.teacher.taps if needs.teacher else ())}
        with seeded(recipe.seed, f"init/loss/{label}"):
            terms[label] = chosen.build(
                widths={tap: backbone.width(tap) for tap in taps},
                grid=backbone.grid(recipe.shapes),
                image=recipe.shapes.image,
                num_classes=recipe.shapes.num_classes,
                **accepted(chosen.component, mean=mean, std=std),
            )
        with component_boundary(chosen.component.qualified):
            initialize(terms[label], LossTerm, f"loss.{label}", recipe.seed, f"init/loss/{label}")
        terms[label].train()  # but not its frozen modules
    return terms


@contextmanager
def seeded(seed: int, purpose: str) -> Iterator[None]:
    """Seed the global generator for constructors that draw from it, and restore it afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(generator(seed, purpose).initial_seed())
        yield


@torch.no_grad()
def initialize(module: nn.Module, base: type[nn.Module], where: str, seed: int, purpose: str) -> None:
    """Initialize each parameter from its own random stream, so that adding a head changes no other initial weight.

    Frozen parameters of a loss keep the values that its constructor gave them, such as those of a file.
    Raises SD-P220 if the module does not subclass the base class of its kind.
    """
    if not isinstance(module, base):
        raise error(
            "SD-P220",
            f"the component is not a subclass of sddit.{base.__name__}",
            where=where,
            got=f"{type(module).__module__}.{type(module).__qualname__}",
            expect=f"a subclass of sddit.{base.__name__}",
            fix=f"derive the class from sddit.{base.__name__}; sddit.testing.check lists what it lacks",
        )
    if not is_initialized(module):
        what = "the component does not initialize its base class"
        raise error("SD-P220", what, where=definition_of(type(module)) or where, got=where, fix=NO_SUPER)
    if rule := getattr(module, "init_parameter", None):
        frozen_kept = base is LossTerm
        for name, parameter in module.named_parameters():
            if frozen_kept and not parameter.requires_grad:
                continue
            rule(name, parameter, generator(seed, f"{purpose}/{name}"))
