"""Define the attention kernels, which map q, k, v [B, heads, N, d] to [B, heads, N, d]."""

from __future__ import annotations

from importlib import import_module

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from sddit.interfaces import AttentionParams


def same_group(groups: Tensor) -> Tensor:
    """Return which tokens attend to each other, bool [B, 1, N, N], from group numbers [B, N]."""
    return groups[:, None, :, None] == groups[:, None, None, :]


def softmax(scores: Tensor) -> Tensor:
    """Apply softmax over the last axis, in float32 or wider.

    On a CPU, torch processes rows of fewer than 16 numbers one by one, four times slower than columns.
    """
    dtype = torch.promote_types(scores.dtype, torch.float32)
    if scores.shape[-1] < 16:
        return scores.mT.contiguous().softmax(dim=-2, dtype=dtype).mT
    return scores.softmax(dim=-1, dtype=dtype)


class Eager:
    """Explicit softmax."""

    def __init__(self, params: AttentionParams) -> None:
        pass

    def __call__(
        self, q: Tensor, k: Tensor, v: Tensor, *, bias: Tensor | None = None, groups: Tensor | None = None
    ) -> Tensor:
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)  # [B, heads, N, N]
        if bias is not None:
            scores = scores + bias
        if groups is not None:
            scores = scores.masked_fill(~same_group(groups), -torch.inf)
        out: Tensor = softmax(scores).to(v.dtype) @ v
        return out


FUSED_WITH_MASK = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
"""All except cuDNN, whose backward pass returns NaN for q with a mask and N = 64, 192, ... (pytorch/pytorch#196678)."""


class Sdpa:
    """`torch.nn.functional.scaled_dot_product_attention`, with the fused kernel that torch selects.

    With a mask or a bias it is FlashAttention's on a CPU, which has no gradient for a bias, and the memory-efficient
    one on CUDA, which has; torch pads the rows of a dense bias to the multiple of 8 numbers that the latter requires.
    Without a fused kernel, as in float64 on CUDA, torch uses the explicit formula.
    """

    def __init__(self, params: AttentionParams) -> None:
        pass

    def __call__(
        self, q: Tensor, k: Tensor, v: Tensor, *, bias: Tensor | None = None, groups: Tensor | None = None
    ) -> Tensor:
        if bias is None and groups is None:
            return F.scaled_dot_product_attention(q, k, v)
        mask = None if groups is None else same_group(groups)  # [B, 1, N, N]
        if bias is not None:
            dense = (bias[None] if bias.ndim == 3 else bias).to(q.dtype).contiguous()  # [B or 1, heads, N, N]
            mask = dense if mask is None else dense.masked_fill(~mask, -torch.inf)
        with sdpa_kernel(FUSED_WITH_MASK):
            return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


MAX_SHAPES = 256  # for which FlexAttention may be compiled in one process


class Flex:
    """`torch.nn.attention.flex_attention`: bias and groups are read per score inside the compiled kernel."""

    def __init__(self, params: AttentionParams) -> None:
        from torch._dynamo import config as dynamo_config
        from torch.nn.attention.flex_attention import flex_attention

        self._compiler = dynamo_config
        self._dynamic = torch.compile(flex_attention)
        # in bf16 on a CPU, torch 2.13 emits C++ that does not compile for dynamic shapes
        self._static = torch.compile(flex_attention, dynamic=False)

    def __call__(
        self, q: Tensor, k: Tensor, v: Tensor, *, bias: Tensor | None = None, groups: Tensor | None = None
    ) -> Tensor:
        bias = None if bias is None else bias.float()  # scores are float32; a float64 bias returns NaN on a CPU

        def with_bias(score: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
            return score if bias is None else score + (bias[h, i, j] if bias.ndim == 3 else bias[b, h, i, j])

        def score_mod(score: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
            score = with_bias(score, b, h, i, j)
            return score if groups is None else torch.where(groups[b, i] == groups[b, j], score, -torch.inf)

        plain = bias is None and groups is None
        attend = self._static if q.device.type == "cpu" else self._dynamic
        # above its limit of shapes the compiler would only warn and run an unfused kernel
        with self._compiler.patch(recompile_limit=MAX_SHAPES, fail_on_recompile_limit_hit=True):
            return attend(q, k, v, score_mod=None if plain else score_mod)


ROW_MULTIPLE = 8  # numbers: the kernel requires rows of 16 bytes, 8 numbers in bf16


def align_rows(bias: Tensor) -> Tensor:
    """Return the same numbers [..., N, N], with a storage of rows that is a multiple of 8 numbers long."""
    n = bias.shape[-1]
    return F.pad(bias.contiguous(), (0, -n % ROW_MULTIPLE))[..., :n]


class Xformers:
    """`xformers.ops.memory_efficient_attention`, imported only here because it warns without a GPU."""

    def __init__(self, params: AttentionParams) -> None:
        self._attend = import_module("xformers.ops").memory_efficient_attention

    def __call__(
        self, q: Tensor, k: Tensor, v: Tensor, *, bias: Tensor | None = None, groups: Tensor | None = None
    ) -> Tensor:
        if groups is not None:
            raise ValueError("the xformers kernel does not support groups; use sdpa")
        batch, heads, n, _ = q.shape
        if bias is not None:  # a bias gets a gradient only if no axis is broadcast
            bias = align_rows(bias.to(q.dtype)).expand(batch, heads, n, n)
        out: Tensor = self._attend(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), attn_bias=bias)
        return out.transpose(1, 2)  # from [B, N, heads, d]
