"""Provide the small inputs on which components are tested: batches, contexts, draws, shapes and a noise schedule."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sddit.diffusion.draws import KeyedDraws
from sddit.interfaces import Batch, Context, NoiseSchedule, Shapes
from sddit.testing.toys.components import ToySchedule
from sddit.testing.toys.network import ToyAttention
from sddit.testing.toys.params import ToyAttentionParams, ToyScheduleParams
from sddit.training.networks import default_dtype as default_dtype

BATCH, CLASSES, GRID, IMAGE = 6, 3, (4, 4), (2, 8, 8)
"""Six images of 2x8x8, seen as 4x4 tokens, of three classes."""
STEP, STEPS = 50, 100
"""Half of a run of a hundred steps."""


def schedule() -> NoiseSchedule:
    """Return a noise schedule over the levels that EDM uses."""
    return ToySchedule(ToyScheduleParams(t_min=0.002, t_max=80.0))


def shapes(outputs: int = 1, image: tuple[int, int, int] = IMAGE) -> Shapes:
    """Return the shapes that a backbone is built for."""
    return Shapes(image, CLASSES, outputs)


def numbers(*shape: int, key: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return standard normal numbers, the same in every call."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(key), dtype=torch.float64).to(dtype)


def batch(dtype: torch.dtype = torch.float32, rows: slice = slice(None), image: tuple[int, int, int] = IMAGE) -> Batch:
    """Return a training batch, or some of its rows."""
    labels = torch.tensor([0, 1, 2, 0, 1, CLASSES])[rows]  # the last label was dropped
    return Batch(
        x0=0.5 * numbers(BATCH, *image, key=1, dtype=dtype)[rows],
        labels=labels,
        true_labels=torch.tensor([0, 1, 2, 0, 1, 2])[rows],
        ids=torch.arange(BATCH)[rows],
        flipped=torch.zeros(BATCH, dtype=torch.bool)[rows],
    )


def draws(step: int = STEP, rows: slice = slice(None)) -> KeyedDraws:
    """Return the random numbers of that batch."""
    return KeyedDraws(7, step, torch.arange(BATCH)[rows])


def context(step: int = STEP, rows: slice = slice(None), ema_modules: Mapping[str, nn.Module] | None = None) -> Context:
    """Return the context of a step, by default in the middle of a run."""
    return Context(
        step=step,
        total_steps=STEPS,
        schedule=schedule(),
        draws=draws(step, rows),
        num_classes=CLASSES,
        ema_modules=ema_modules or {},
    )


def visible(tokens: int, count: int) -> Tensor:
    """Return `count` visible tokens of each image, [B, count]; each image has its own."""
    return numbers(BATCH, tokens, key=3).argsort(dim=1)[:, :count].sort(dim=1).values


def backbone_of(build: Callable[..., Any], shapes: Shapes, dtype: torch.dtype) -> Any:
    """Build a backbone in a dtype, with the toy attention, which is the softmax written out."""
    attention = ToyAttention(ToyAttentionParams())
    with default_dtype(dtype):
        return build(image=shapes.image, num_classes=shapes.num_classes, outputs=shapes.outputs, attention=attention)


def randomised(module: nn.Module, scale: float = 0.1) -> nn.Module:
    """Fill every parameter with small numbers: layers that start at zero would hide what is behind them."""
    with torch.no_grad():
        for key, parameter in enumerate(module.parameters()):
            parameter.copy_(scale * numbers(*parameter.shape, key=key, dtype=torch.float64))
    return module
