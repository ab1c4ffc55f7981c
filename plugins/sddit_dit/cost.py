"""Compute the cost of a DiT by formula: FLOPs of matrix products only, without softmax, norms and GELU.

Activations are the numbers that torch keeps for the backward pass with a fused attention kernel; `eager` keeps heads *
n^2 more per block.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sddit.interfaces import Cost

SINUSOID = 256  # features of the noise level


def linear(n: int, inputs: int, outputs: int) -> Cost:
    """Return the cost of a Linear with bias on n vectors; its input is kept."""
    return Cost(inputs * outputs + outputs, 2.0 * n * inputs * outputs, n * inputs)


def block_cost(n: int, width: int, hidden: int, condition: int) -> Cost:
    """Return the cost of one transformer block on n tokens."""
    products = (
        linear(n, width, 3 * width) + linear(n, width, width) + linear(n, width, hidden) + linear(n, hidden, width)
    )
    scores = Cost(flops=2.0 * 2 * n * n * width)  # q k^T and the weighted sum of v
    # q, k, v and the fused kernel's output; input, norm and gated branch of both halves; the GELU's input
    activations = Cost(activations=n * (4 * width + 6 * width + hidden))
    return products + scores + activations + linear(1, condition, 6 * width)


def adaptive_linear_cost(n: int, width: int, outputs: int, condition: int) -> Cost:
    """Return the cost of LayerNorm, modulation and Linear on n tokens."""
    return linear(n, width, outputs) + linear(1, condition, 2 * width) + Cost(activations=n * 2 * width)


@dataclass(frozen=True, slots=True)
class Sizes:
    """Numbers of a DiT that determine its cost."""

    tokens: int  # N
    widths: tuple[int, ...]  # of every block, in depth order
    encoder_depth: int  # blocks of the sparse span
    mlp_ratio: float
    patch_values: int  # C p p
    outputs: int  # multiples of C in the output
    labels: int  # rows of the label table
    cls_token: bool
    bridge: Literal["shared", "own"] | None  # from encoder to decoder width; None: one width
    fill: Literal["input", "learned", "zero"] | None  # of hidden positions; None: no decoder
    head_blocks: tuple[int, ...] = ()  # the block that each auxiliary head reads, from 1


def network_cost(sizes: Sizes, *, num_kept: int, blocks: int, output: bool) -> Cost:
    """Return the cost of the network up to block `blocks`, for one image with `num_kept` tokens in the encoder."""
    tokens, condition = sizes.tokens, sizes.widths[0]
    total = Cost(parameters=(sizes.labels + sizes.cls_token) * condition)
    total += linear(tokens, sizes.patch_values, condition)
    total += linear(1, SINUSOID, condition) + linear(1, condition, condition)
    for number, width in enumerate(sizes.widths[:blocks], start=1):
        n = num_kept + sizes.cls_token if number <= sizes.encoder_depth else tokens
        total += block_cost(n, width, int(width * sizes.mlp_ratio), condition)
    if blocks > sizes.encoder_depth:
        total += _decoder_input_cost(sizes, num_kept)
    if output:
        total += adaptive_linear_cost(tokens, sizes.widths[-1], sizes.patch_values * sizes.outputs, condition)
        for block in sizes.head_blocks:
            n = num_kept if block <= sizes.encoder_depth else tokens
            total += adaptive_linear_cost(n, sizes.widths[block - 1], sizes.patch_values, condition)
    return total


def _decoder_input_cost(sizes: Sizes, num_kept: int) -> Cost:
    """Return the cost of the bridge and of the fill of hidden positions."""
    tokens, condition, width = sizes.tokens, sizes.widths[0], sizes.widths[-1]
    fill = Cost(parameters=width if sizes.fill == "learned" else 0)
    if sizes.bridge is None:
        return fill
    if sizes.bridge == "own":
        noisy = adaptive_linear_cost(tokens, condition, width, condition)
        noisy = noisy if num_kept < tokens else Cost(parameters=noisy.parameters)
        return adaptive_linear_cost(num_kept, condition, width, condition) + noisy
    through = tokens if sizes.fill == "input" else num_kept
    return fill + adaptive_linear_cost(through, condition, width, condition)
