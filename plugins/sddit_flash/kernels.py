"""The attention kernels. All take q, k, v [B, heads, N, d] and give [B, heads, N, d]."""

from __future__ import annotations

from importlib import import_module

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from sddit.interfaces import AttentionParams


def same_group(groups: Tensor) -> Tensor:
    """Which tokens may see each other, bool [B, 1, N, N], from group numbers [B, N]."""
    return groups[:, None, :, None] == groups[:, None, None, :]


def softmax(scores: Tensor) -> Tensor:
    """Over the last axis, in float32 or wider.

    On a CPU torch works through rows of fewer than 16 numbers one by one, four times slower than through columns.
    """
    dtype = torch.promote_types(scores.dtype, torch.float32)
    if scores.shape[-1] < 16:
        return scores.mT.contiguous().softmax(dim=-2, dtype=dtype).mT
    return scores.softmax(dim=-1, dtype=dtype)


class Eager:
    """The formula as written."""

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
"""All but cuDNN's, whose backward pass gives NaN to q for a mask and N = 64, 192, ... (pytorch/pytorch#196678)."""


class Sdpa:
    """`torch.nn.functional.scaled_dot_product_attention`, in the fused kernel that torch chooses.

    With a mask or a bias that is FlashAttention's on a CPU, which has no gradient to a bias, and the memory-efficient one
    on CUDA, which has; torch pads the rows of a bias to the multiple of 8 numbers that this one wants, if the bias is
    dense. Where no fused kernel serves, as in float64 on CUDA, torch writes the formula out.
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


SHAPES = 256  # that FlexAttention may be compiled for in one process


class Flex:
    """`torch.nn.attention.flex_attention`: bias and groups are read score by score inside the compiled kernel."""

    def __init__(self, params: AttentionParams) -> None:
        from torch._dynamo import config as dynamo_config
        from torch.nn.attention.flex_attention import flex_attention

        self._compiler = dynamo_config
        self._any_shape = torch.compile(flex_attention)
        # in bf16 on a CPU, torch 2.13 emits C++ that does not compile for the kernel of any shape
        self._one_shape = torch.compile(flex_attention, dynamic=False)

    def __call__(
        self, q: Tensor, k: Tensor, v: Tensor, *, bias: Tensor | None = None, groups: Tensor | None = None
    ) -> Tensor:
        bias = None if bias is None else bias.float()  # scores are float32, and a bias in float64 gives nan on a CPU

        def with_bias(score: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
            return score if bias is None else score + (bias[h, i, j] if bias.ndim == 3 else bias[b, h, i, j])

        def score_mod(score: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
            score = with_bias(score, b, h, i, j)
            return score if groups is None else torch.where(groups[b, i] == groups[b, j], score, -torch.inf)

        plain = bias is None and groups is None
        attend = self._one_shape if q.device.type == "cpu" else self._any_shape
        # past its limit of shapes the compiler would run an unfused kernel with no more than a warning
        with self._compiler.patch(recompile_limit=SHAPES, fail_on_recompile_limit_hit=True):
            return attend(q, k, v, score_mod=None if plain else score_mod)


ROW = 8  # numbers: the kernel wants rows of 16 bytes, 8 numbers of bf16


def aligned(bias: Tensor) -> Tensor:
    """The same numbers [..., N, N], in rows whose storage is a multiple of 8 numbers long."""
    n = bias.shape[-1]
    return F.pad(bias.contiguous(), (0, -n % ROW))[..., :n]


class Xformers:
    """`xformers.ops.memory_efficient_attention`. Imported here and not before: it warns loudly without a GPU."""

    def __init__(self, params: AttentionParams) -> None:
        self._attend = import_module("xformers.ops").memory_efficient_attention

    def __call__(
        self, q: Tensor, k: Tensor, v: Tensor, *, bias: Tensor | None = None, groups: Tensor | None = None
    ) -> Tensor:
        if groups is not None:
            raise ValueError("the xformers kernel serves no groups; use sdpa")
        batch, heads, n, _ = q.shape
        if bias is not None:  # it has a gradient to a bias only if none of its axes is left to broadcast
            bias = aligned(bias.to(q.dtype)).expand(batch, heads, n, n)
        out: Tensor = self._attend(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), attn_bias=bias)
        return out.transpose(1, 2)  # from [B, N, heads, d]
