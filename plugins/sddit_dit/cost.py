"""What a DiT costs, by formula. Multiply-adds of matrix products only; softmax, norms and GELU are left out.

Activations count what torch keeps for the backward pass with a fused attention kernel; `eager` keeps heads * n^2 more per
block.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sddit.interfaces import Cost, Shapes

if TYPE_CHECKING:
    from sddit_dit.params import DiTParams

SINUSOID = 256  # features of the noise level


def linear(n: int, inputs: int, outputs: int) -> Cost:
    """A Linear with bias on n vectors; its input is kept."""
    return Cost(inputs * outputs + outputs, 2.0 * n * inputs * outputs, n * inputs)


def block_cost(n: int, width: int, hidden: int, condition: int) -> Cost:
    """One transformer block on n tokens."""
    products = (
        linear(n, width, 3 * width) + linear(n, width, width) + linear(n, width, hidden) + linear(n, hidden, width)
    )
    scores = Cost(flops=2.0 * 2 * n * n * width)  # q k^T and the weighted sum of v
    # q, k, v and the fused kernel's output; input, norm and gated branch of both halves; the GELU's input
    kept = Cost(activations=n * (4 * width + 6 * width + hidden))
    return products + scores + kept + linear(1, condition, 6 * width)


def adaptive_linear_cost(n: int, width: int, outputs: int, condition: int) -> Cost:
    """LayerNorm, modulation and Linear on n tokens."""
    return linear(n, width, outputs) + linear(1, condition, 2 * width) + Cost(activations=n * 2 * width)


def network_cost(params: DiTParams, shapes: Shapes, *, num_kept: int, blocks: int, output: bool) -> Cost:
    """The network cut after `blocks` blocks, or whole, on one image of which the encoder sees `num_kept` tokens."""
    (channels, _, _), (rows, columns) = shapes.image, params.grid(shapes)
    tokens = rows * columns
    sizes, sparse, condition = params.block_sizes, params.encoder_depth, params.block_sizes[0][0]

    labels = shapes.num_classes + (params.null_label == "row")
    total = Cost(parameters=labels * condition + params.cls_token * condition)
    total += linear(tokens, channels * params.patch**2, condition)
    total += linear(1, SINUSOID, condition) + linear(1, condition, condition)
    for number, (width, _) in enumerate(sizes[:blocks], start=1):
        n = num_kept + params.cls_token if number <= sparse else tokens
        total += block_cost(n, width, int(width * params.mlp_ratio), condition)
    if blocks > sparse:
        total += _decoder_entry(params, tokens, num_kept)
    if output:
        values = params.patch**2 * shapes.outputs * channels
        total += adaptive_linear_cost(tokens, sizes[-1][0], values, condition)
    return total


def _decoder_entry(params: DiTParams, tokens: int, num_kept: int) -> Cost:
    """The bridge, and what hidden positions hold behind it."""
    assert params.decoder is not None
    condition, width = params.block_sizes[0][0], params.block_sizes[-1][0]
    fill = Cost(parameters=width if params.fill == "learned" else 0)
    if params.decoder.style == "split":
        return fill
    if params.decoder.bridge == "own":
        noisy = adaptive_linear_cost(tokens, condition, width, condition)
        noisy = noisy if num_kept < tokens else Cost(parameters=noisy.parameters)
        return adaptive_linear_cost(num_kept, condition, width, condition) + noisy
    through = tokens if params.fill == "input" else num_kept
    return fill + adaptive_linear_cost(through, condition, width, condition)
