"""Fixtures: toy runs, and toy weights in a published layout."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from sddit.plugins.host import Host, using_host
from sddit.progress import Progress
from sddit.recipes.recipe import Recipe
from sddit.recipes.resolve import resolve
from sddit.runs.pipeline import run
from sddit.testing.toys.plugin import TOY_PAIR_RECIPE, toy_host

EXTRA = """
save_every = 2
log_every = 1
[ema.main]
decay = 0.9
[evaluate]
samples = 6
previews = 0
"""


@pytest.fixture
def host() -> Iterator[Host]:
    """Replace the plugin host of the process by one with toy components."""
    with using_host(toy_host()) as toys:
        yield toys


@pytest.fixture
def recipe_of(tmp_path: Path, host: Host) -> Callable[..., Recipe]:
    """`recipe_of("train.steps=6")`: the toy pair recipe, with an EMA."""
    path = tmp_path / "toy.toml"
    path.write_text(TOY_PAIR_RECIPE.replace("batch = 8\n", "batch = 8" + EXTRA))
    return lambda *overrides: resolve(path, overrides)


@pytest.fixture
def finished(recipe_of: Callable[..., Recipe], tmp_path: Path) -> Path:
    """Return the folder of a finished toy run."""
    return run(recipe_of(), out=tmp_path / "runs", device="cpu", progress=Progress()).folder


def toy_state(hidden: int = 8, depth: int = 1, classes: int = 7, *, fill: float = 0.1) -> dict[str, Tensor]:
    """Return weights in the layout `toy`, for images 1x8x8 in patches of 4."""
    generator = torch.Generator().manual_seed(hidden)
    shapes = {
        "embed.weight": (hidden, 16),
        "embed.bias": (hidden,),
        "position": (4, hidden),
        "level.weight": (hidden, 1),
        "level.bias": (hidden,),
        "label.weight": (hidden, classes + 1),
        "cls": (hidden,),
        "head.weight": (16, hidden),
        "head.bias": (16,),
    }
    for number in range(depth):
        block = f"blocks.{number}"
        shapes |= {f"{block}.norm.weight": (hidden,), f"{block}.norm.bias": (hidden,)}
        shapes |= {f"{block}.up.weight": (hidden, 2 * hidden), f"{block}.up.bias": (hidden,)}
        shapes |= {f"{block}.down.weight": (2 * hidden, hidden), f"{block}.down.bias": (2 * hidden,)}
    return {f"net.{name}": fill * torch.randn(shape, generator=generator) for name, shape in shapes.items()}


@pytest.fixture
def toy_file(tmp_path: Path) -> Path:
    """Write a safetensors file of the layout `toy` with seven classes."""
    path = tmp_path / "published.safetensors"
    save_file(toy_state(), path)
    return path


@pytest.fixture(name="toy_state")
def _toy_state() -> Callable[..., dict[str, Tensor]]:
    """`toy_state(classes=7)`: weights in the layout `toy`."""
    return toy_state
