"""The attention kernels. All take q, k, v [B, heads, N, d] and give [B, heads, N, d]."""

from __future__ import annotations

from importlib import import_module

import torch
from torch import Tensor
from torch.nn import functional as F

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


class Sdpa:
    """`torch.nn.functional.scaled_dot_product_attention`; a mask or bias leaves the fastest of its kernels unused."""

    def __init__(self, params: AttentionParams) -> None:
        pass

    def __call__(
        self, q: Tensor, k: Tensor, v: Tensor, *, bias: Tensor | None = None, groups: Tensor | None = None
    ) -> Tensor:
        mask = None if groups is None else same_group(groups)
        if bias is not None:
            mask = bias.to(q.dtype) if mask is None else bias.to(q.dtype).masked_fill(~mask, -torch.inf)
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


class Xformers:
    """`xformers.ops.memory_efficient_attention`. Imported here and not before: it warns loudly without a GPU."""

    def __init__(self, params: AttentionParams) -> None:
        self._attend = import_module("xformers.ops").memory_efficient_attention

    def __call__(
        self, q: Tensor, k: Tensor, v: Tensor, *, bias: Tensor | None = None, groups: Tensor | None = None
    ) -> Tensor:
        if bias is not None or groups is not None:
            raise ValueError("the xformers kernel serves neither a bias nor groups; use sdpa")
        out: Tensor = self._attend(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))  # [B, N, heads, d]
        return out.transpose(1, 2)
