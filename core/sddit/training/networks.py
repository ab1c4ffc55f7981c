"""Build the networks of a recipe, with initial weights keyed by parameter name."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from sddit.backbones import Backbone
from sddit.diffusion.draws import generator
from sddit.errors import error
from sddit.losses import LossTerm
from sddit.recipes.recipe import Recipe


def build_backbone(recipe: Recipe, *, device: torch.device | str) -> Backbone:
    """Build the network F. Each initial weight is a function of the seed and the parameter's name alone."""
    shapes = recipe.shapes
    with seeded(recipe.seed, "init/backbone"):
        backbone = recipe.backbone.build(
            image=shapes.image,
            num_classes=shapes.num_classes,
            outputs=shapes.outputs,
            attention=recipe.attention.build(),
        )
    _require_subclass(backbone, Backbone, "backbone")
    initialize(backbone, recipe.seed, "init")
    built: Backbone = backbone.to(device)
    return built


def build_terms(recipe: Recipe) -> dict[str, LossTerm]:
    """Build the active losses, with their heads."""
    backbone = recipe.backbone.params
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
            )
        _require_subclass(terms[label], LossTerm, f"loss.{label}")
        initialize(terms[label], recipe.seed, f"init/loss/{label}")
    return terms


def initialize(module: nn.Module, seed: int, purpose: str) -> None:
    """Initialize each parameter from its own random stream, so that adding a head changes no other initial weight."""
    rule: Callable[[str, Tensor, torch.Generator], None] | None = getattr(module, "init_parameter", None)
    if rule is None:
        return
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            rule(name, parameter, generator(seed, f"{purpose}/{name}"))


@contextmanager
def seeded(seed: int, purpose: str) -> Iterator[None]:
    """Seed the global generator for constructors that draw from it, and restore it afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(generator(seed, purpose).initial_seed())
        yield


def _require_subclass(module: object, base: type[nn.Module], where: str) -> None:
    """Raise SD-P220 for a network that does not subclass the base class of its kind."""
    if not isinstance(module, base):
        raise error(
            "SD-P220",
            f"the component is not a subclass of sddit.{base.__name__}",
            where=where,
            got=f"{type(module).__module__}.{type(module).__qualname__}",
            expect=f"a subclass of sddit.{base.__name__}",
            fix=f"derive the class from sddit.{base.__name__}; sddit.testing.check lists what it lacks",
        )
