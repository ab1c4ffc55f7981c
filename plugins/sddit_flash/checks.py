"""What `sddit-run verify` measures of the attention kernels."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from sddit.diffusion.draws import generator
from sddit.interfaces import Attention, AttentionParams, CheckContext, Measurement, NotHereError

DTYPES = {"fp64": torch.float64, "fp32": torch.float32, "bf16": torch.bfloat16}
BOUNDS = {"fp64": 1e-12, "fp32": 1e-5, "bf16": 2e-2}
BACKWARD = 2.0
"""Gradients may be this much further off than values."""
HEADS, WIDTH = 3, 72  # the width of a head of DiT-XL, which is no power of two
LENGTHS = (16, 49, 64)
"""Of a small grid, of one that is no multiple of 8, and of one at which a kernel of cuDNN gave NaN."""

Given = dict[str, Tensor]


def agreement(context: CheckContext) -> Iterator[Measurement]:
    """Values and gradients beside the formula in float64, in every precision, at the worst of all it says it serves.

    q, k and v are cut from one projection and a bias from a table [N, N, heads], strided as in a network.
    """
    component = context.component
    assert component is not None
    params = component.params()
    assert isinstance(params, AttentionParams)
    if context.device not in params.devices:
        raise NotHereError(f"runs on {' and '.join(params.devices)} alone: --device {params.devices[0]}")
    if context.device == "cpu" and component.name == "flex" and not context.full:
        raise NotHereError("is compiled for each case, which takes its time on a CPU: --full")
    kernel: Attention = component.build(params)
    with full_products():
        for precision in params.dtypes:
            yield from compared(kernel, params, precision, context.device)


@contextmanager
def full_products() -> Iterator[None]:
    """No TF32 inside: a bound of fp32 would else measure the rounding of the products."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def compared(kernel: Attention, params: AttentionParams, precision: str, device: str) -> Iterator[Measurement]:
    """One precision: the options and lengths that are furthest off."""
    trains = device in params.backward_devices
    values, gradients = {}, {}
    for options in served(params):
        for n in LENGTHS:
            case = f"N = {n}, {' and '.join(options) or 'nothing else'}"
            reference = called(formula, given(n, options, torch.float64, device), trains)
            found = called(kernel, given(n, options, DTYPES[precision], device), trains)
            values[case], *rest = [distance(mine, theirs) for mine, theirs in zip(found, reference, strict=True)]
            if rest:
                gradients[case] = max(rest, key=badness)
    yield worst(f"{precision}: values", values, BOUNDS[precision])
    if trains:
        yield worst(f"{precision}: gradients", gradients, BACKWARD * BOUNDS[precision])


def served(params: AttentionParams) -> list[tuple[str, ...]]:
    """What is handed over beside q, k and v, case by case."""
    biases = [("bias of the heads",), ("bias of each image",)] if params.takes_bias else []
    groups = [("groups",)] if params.takes_groups else []
    both = [("bias of each image", "groups")] if biases and groups else []
    return [(), *biases, *groups, *both]


def formula(q: Tensor, k: Tensor, v: Tensor, *, bias: Tensor | None = None, groups: Tensor | None = None) -> Tensor:
    """softmax(q k^T / sqrt(d) + bias) v, as written."""
    scores = q @ k.mT / math.sqrt(q.shape[-1])  # [B, heads, N, N]
    scores = scores if bias is None else scores + bias
    if groups is not None:
        scores = torch.where(groups[:, None, :, None] == groups[:, None, None, :], scores, -math.inf)
    return scores.softmax(-1) @ v


def given(n: int, options: tuple[str, ...], dtype: torch.dtype, device: str) -> Given:
    """q, k, v and the options, the same numbers in every precision."""

    def numbers(name: str, *shape: int) -> Tensor:
        drawn = torch.randn(shape, generator=generator(0, f"flash/{name}/{n}"), dtype=torch.float64)
        return drawn.to(device, dtype)

    packed = numbers("qkv", 2, n, 3, HEADS, WIDTH).permute(2, 0, 3, 1, 4)
    made = dict(zip("qkv", packed.unbind(0), strict=True))
    if "bias of the heads" in options:
        made["bias"] = numbers("bias", n, n, HEADS).permute(2, 0, 1)
    if "bias of each image" in options:
        made["bias"] = numbers("bias", 2, n, n, HEADS).permute(0, 3, 1, 2)
    if "groups" in options:
        made["groups"] = (torch.arange(n) % 3).expand(2, -1).to(device)
    return made


def called(kernel: Attention, given: Given, trains: bool) -> list[Tensor]:
    """The kernel's value, and if it trains its gradients to q, k, v and the bias."""
    leaves = [name for name in given if name != "groups"]
    made = {name: t.detach().requires_grad_(trains and name in leaves) for name, t in given.items()}
    more = {name: made[name] for name in ("bias", "groups") if name in made}
    out = kernel(made["q"], made["k"], made["v"], **more)
    if not trains:
        return [out]
    weight = torch.linspace(-1, 1, out.numel(), dtype=torch.float64, device=out.device).view(out.shape)
    return [out, *torch.autograd.grad((out * weight.to(out.dtype)).sum(), [made[name] for name in leaves])]


def distance(mine: Tensor, theirs: Tensor) -> float:
    """The difference relative to the reference."""
    return float(((mine.double() - theirs).norm() / theirs.norm()).detach())


def badness(value: float) -> float:
    """For a comparison in which NaN is worse than all."""
    return math.inf if math.isnan(value) else value


def worst(what: str, found: dict[str, float], bound: float) -> Measurement:
    """The case that is furthest off, by name."""
    case = max(found, key=lambda case: badness(found[case]))
    return Measurement(f"{what}, worst at {case}", found[case], bound)
