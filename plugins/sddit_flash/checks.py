"""Measure the attention kernels for `sddit-run verify`."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from sddit.data.full_precision import full_precision
from sddit.diffusion.draws import generator
from sddit.interfaces import Attention, AttentionParams, CheckContext, CheckSkipped, Measurement

DTYPES = {"fp64": torch.float64, "fp32": torch.float32, "bf16": torch.bfloat16}
BOUNDS = {"fp64": 1e-12, "fp32": 1e-5, "bf16": 2e-2}
GRADIENT_FACTOR = 2.0
"""Bounds of gradients as a multiple of those of values."""
HEADS, WIDTH = 3, 72  # head width of DiT-XL, not a power of two
LENGTHS = (16, 49, 64)
"""Lengths of a small grid, of one that is not a multiple of 8, and of one at which a cuDNN kernel returned NaN."""

Inputs = dict[str, Tensor]


def agreement(context: CheckContext) -> Iterator[Measurement]:
    """Compare values and gradients with the formula in float64, in every supported precision; report the worst case.

    q, k and v are slices of one projection and a bias is one of a table [N, N, heads], strided as in a network.
    """
    component = context.component
    assert component is not None
    params = component.params()
    assert isinstance(params, AttentionParams)
    if context.device not in params.devices:
        raise CheckSkipped(f"runs only on {' and '.join(params.devices)}: --device {params.devices[0]}")
    if context.device == "cpu" and component.name == "flex" and not context.full:
        raise CheckSkipped("is compiled for each case, which is slow on a CPU: --full")
    kernel: Attention = component.build(params)
    with full_precision():  # so that bounds do not measure the rounding of products
        for precision in params.dtypes:
            yield from compare(kernel, params, precision, context.device)


def compare(kernel: Attention, params: AttentionParams, precision: str, device: str) -> Iterator[Measurement]:
    """Measure one precision, at the options and lengths with the maximum error."""
    trains = device in params.backward_devices
    values, gradients = {}, {}
    for options in option_sets(params):
        for n in LENGTHS:
            case = f"N = {n}, {' and '.join(options) or 'no options'}"
            reference = call(formula, make_inputs(n, options, torch.float64, device), trains)
            outputs = call(kernel, make_inputs(n, options, DTYPES[precision], device), trains)
            values[case], *rest = [
                relative_error(ours, theirs) for ours, theirs in zip(outputs, reference, strict=True)
            ]
            if rest:
                gradients[case] = max(rest, key=nan_as_inf)
    yield worst(f"{precision}: values", values, BOUNDS[precision])
    if trains:
        yield worst(f"{precision}: gradients", gradients, GRADIENT_FACTOR * BOUNDS[precision])


def option_sets(params: AttentionParams) -> list[tuple[str, ...]]:
    """Return the supported combinations of inputs in addition to q, k and v."""
    biases = [("bias of the heads",), ("bias of each image",)] if params.takes_bias else []
    groups = [("groups",)] if params.takes_groups else []
    both = [("bias of each image", "groups")] if biases and groups else []
    return [(), *biases, *groups, *both]


def formula(q: Tensor, k: Tensor, v: Tensor, *, bias: Tensor | None = None, groups: Tensor | None = None) -> Tensor:
    """Compute softmax(q k^T / sqrt(d) + bias) v."""
    scores = q @ k.mT / math.sqrt(q.shape[-1])  # [B, heads, N, N]
    scores = scores if bias is None else scores + bias
    if groups is not None:
        scores = torch.where(groups[:, None, :, None] == groups[:, None, None, :], scores, -math.inf)
    return scores.softmax(-1) @ v


def make_inputs(n: int, options: tuple[str, ...], dtype: torch.dtype, device: str) -> Inputs:
    """Return q, k, v and the options, with the same numbers in every precision."""

    def numbers(name: str, *shape: int) -> Tensor:
        drawn = torch.randn(shape, generator=generator(0, f"flash/{name}/{n}"), dtype=torch.float64)
        return drawn.to(device, dtype)

    packed = numbers("qkv", 2, n, 3, HEADS, WIDTH).permute(2, 0, 3, 1, 4)
    inputs = dict(zip("qkv", packed.unbind(0), strict=True))
    if "bias of the heads" in options:
        inputs["bias"] = numbers("bias", n, n, HEADS).permute(2, 0, 1)
    if "bias of each image" in options:
        inputs["bias"] = numbers("bias", 2, n, n, HEADS).permute(0, 3, 1, 2)
    if "groups" in options:
        inputs["groups"] = (torch.arange(n) % 3).expand(2, -1).to(device)
    return inputs


def call(kernel: Attention, inputs: Inputs, trains: bool) -> list[Tensor]:
    """Return the kernel's output and, with `trains`, its gradients for q, k, v and the bias."""
    leaves = [name for name in inputs if name != "groups"]
    tensors = {name: t.detach().requires_grad_(trains and name in leaves) for name, t in inputs.items()}
    options = {name: tensors[name] for name in ("bias", "groups") if name in tensors}
    out = kernel(tensors["q"], tensors["k"], tensors["v"], **options)
    if not trains:
        return [out]
    weight = torch.linspace(-1, 1, out.numel(), dtype=torch.float64, device=out.device).view(out.shape)
    return [out, *torch.autograd.grad((out * weight.to(out.dtype)).sum(), [tensors[name] for name in leaves])]


def relative_error(ours: Tensor, theirs: Tensor) -> float:
    """Return the difference relative to the reference."""
    return float(((ours.double() - theirs).norm() / theirs.norm()).detach())


def nan_as_inf(value: float) -> float:
    """Return infinity for NaN, so that NaN compares as the maximum."""
    return math.inf if math.isnan(value) else value


def worst(what: str, errors: dict[str, float], bound: float) -> Measurement:
    """Return the measurement of the case with the maximum error."""
    case = max(errors, key=lambda case: nan_as_inf(errors[case]))
    return Measurement(f"{what}, worst at {case}", errors[case], bound)
