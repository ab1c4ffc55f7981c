"""The tiny things that components are tried on, and the questions that are asked of several kinds."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sddit.diffusion.draws import KeyedDraws
from sddit.interfaces import Batch, Context, NoiseSchedule, Shapes
from sddit.testing.kit import Findings
from sddit.testing.toys.components import ToySchedule
from sddit.testing.toys.params import ToyScheduleParams
from sddit.training.networks import default_dtype as default_dtype

BATCH, CLASSES, GRID, IMAGE = 6, 3, (4, 4), (2, 8, 8)
"""Six images of 2x8x8, seen as 4x4 tokens, of three classes."""
STEP, STEPS = 50, 100
"""Half of a run of a hundred steps."""


def schedule() -> NoiseSchedule:
    """Return a noise schedule over the levels that EDM uses."""
    made: NoiseSchedule = ToySchedule(ToyScheduleParams(t_min=0.002, t_max=80.0))
    return made


def shapes(outputs: int = 1, image: tuple[int, int, int] = IMAGE) -> Shapes:
    """Return the shapes a backbone is built for."""
    return Shapes(image, CLASSES, outputs)


def numbers(*shape: int, key: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Standard normal numbers, the same for every call."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(key), dtype=torch.float64).to(dtype)


def batch(dtype: torch.dtype = torch.float32, rows: slice = slice(None), image: tuple[int, int, int] = IMAGE) -> Batch:
    """Return a training batch; `rows` takes a part of it."""
    labels = torch.tensor([0, 1, 2, 0, 1, CLASSES])[rows]  # the last label was dropped
    return Batch(
        x0=0.5 * numbers(BATCH, *image, key=1, dtype=dtype)[rows],
        labels=labels,
        true_labels=torch.tensor([0, 1, 2, 0, 1, 2])[rows],
        ids=torch.arange(BATCH)[rows],
        flipped=torch.zeros(BATCH, dtype=torch.bool)[rows],
    )


def draws(step: int = STEP, rows: slice = slice(None)) -> KeyedDraws:
    """Return the keyed randomness of that batch."""
    return KeyedDraws(7, step, torch.arange(BATCH)[rows])


def context(step: int = STEP, rows: slice = slice(None), ema_modules: Mapping[str, nn.Module] | None = None) -> Context:
    """Return a moment in the middle of a run."""
    return Context(
        step=step,
        total_steps=STEPS,
        schedule=schedule(),
        draws=draws(step, rows),
        num_classes=CLASSES,
        ema_modules=ema_modules or {},
    )


def randomised(module: nn.Module, scale: float = 0.1) -> nn.Module:
    """Return every parameter filled with small numbers: layers that start at zero would hide what is behind them."""
    with torch.no_grad():
        for key, parameter in enumerate(module.parameters()):
            parameter.copy_(scale * numbers(*parameter.shape, key=key, dtype=torch.float64))
    return module


@contextlib.contextmanager
def no_global_randomness(findings: Findings, doing: str) -> Iterator[None]:
    """KeyedDraws are keyed: a component that takes from torch's global generator cannot be repeated."""
    before = torch.get_rng_state()
    yield
    if not torch.equal(torch.get_rng_state(), before):
        torch.set_rng_state(before)
        findings.add(
            f"{doing} took numbers from torch's global generator", fix="use the keyed draws that are handed to it"
        )


def unchanged(
    findings: Findings, before: Mapping[str, Tensor], after: Mapping[str, Tensor], what: str, fix: str
) -> None:
    """Note every named tensor that is another one now."""
    for name, value in before.items():
        same = name in after and torch.equal(after[name], value)
        findings.expect(same, f"{what}: {name}", fix=fix)


def copied(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the values that tensors have now."""
    return {name: value.detach().clone() for name, value in tensors.items()}


def shape_of(value: Any) -> str:
    """For a message: `(6, 2, 8, 8) float32`, or what it is instead of a tensor."""
    if not isinstance(value, Tensor):
        return type(value).__name__
    return f"{tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}"


def is_shaped(findings: Findings, value: Any, shape: tuple[int, ...], what: str, fix: str = "") -> bool:
    """Return whether `value` is a finite tensor of this shape; what it is else is noted."""
    if not (isinstance(value, Tensor) and tuple(value.shape) == shape):
        return findings.expect(False, f"{what} has a wrong shape", got=shape_of(value), expect=str(shape), fix=fix)
    finite = not value.is_floating_point() or bool(value.isfinite().all())
    return findings.expect(
        finite, f"{what} is not finite", got=f"{int((~value.isfinite()).sum())} numbers of {value.numel()}"
    )


def copy_of(module: nn.Module) -> nn.Module:
    """Return a frozen copy, as a teacher has."""
    return copy.deepcopy(module).requires_grad_(False)
