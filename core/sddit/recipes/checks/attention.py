"""Check that the attention kernel serves the backbone, the precision and the device."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from sddit.errors import Problem, one_of
from sddit.interfaces import AttentionParams
from sddit.recipes.recipe import Recipe


def check_attention(recipe: Recipe) -> Iterator[Problem]:
    kernel, precision = recipe.attention, recipe.train.precision
    if precision not in kernel.params.dtypes:
        yield Problem(
            "SD-R108",
            f"attention kernel {kernel.component.name!r} does not compute in {precision}",
            where="train.precision",
            got=precision,
            expect=one_of(precision, kernel.params.dtypes),
            fix=f"that, or attention.name = {kernels(recipe, lambda params: precision in params.dtypes)}",
        )
    backbone = recipe.backbone
    if backbone.params.needs_bias and not kernel.params.takes_bias:
        yield Problem(
            "SD-R108",
            f"backbone {backbone.component.name!r} adds a bias to its attention, which kernel "
            f"{kernel.component.name!r} does not support",
            where="attention.name",
            got=kernel.component.name,
            expect=kernels(recipe, lambda params: params.takes_bias and precision in params.dtypes),
        )


def check_device(recipe: Recipe, device: str) -> list[Problem]:
    """Return why this recipe cannot train on a device type (`cpu`, `cuda`): its attention kernel."""
    kernel = recipe.attention
    if device in trains_on(kernel.params):
        return []
    only = "" if device not in kernel.params.devices else ", forward only"
    instead = kernels(recipe, lambda params: device in trains_on(params))
    return [
        Problem(
            "SD-R108",
            f"attention kernel {kernel.component.name!r} does not train on {device}{only}",
            where="attention.name",
            got=f"{kernel.component.name} with --device {device}",
            expect=instead,
            fix=" or ".join(f"--device {name}" for name in trains_on(kernel.params)),
        )
    ]


def trains_on(kernel: AttentionParams) -> list[str]:
    """Return the device types on which a kernel runs forward and backward."""
    return [device for device in kernel.devices if device in kernel.backward_devices]


def kernels(recipe: Recipe, serves: Callable[[AttentionParams], bool]) -> str:
    """Return the installed kernels that are suitable, for the `expect` of a problem."""
    names = [name for name, params in recipe.kernels.items() if serves(params)]
    return f"one of {', '.join(names)}" if names else "a suitable kernel: none is installed"
