"""Attention kernels: softmax(q k^T / sqrt(d) + bias) v in four ways.

`eager` is the reference and the fastest on a CPU up to some hundred tokens; `sdpa` is the one for a GPU. A recipe names
its kernel, and one that cannot serve a run is refused: none is ever put in another's place.
"""

from __future__ import annotations

from sddit import Registry, hookimpl
from sddit.interfaces import Attention
from sddit_flash.params import EagerParams, FlexParams, SdpaParams, XformersParams

AGREEMENT = {"it agrees with the formula": "sddit_flash.checks:agreement"}


@hookimpl
def register_attention(registry: Registry[Attention]) -> None:
    registry.add(
        "eager",
        "sddit_flash.kernels:Eager",
        params=EagerParams,
        summary="Explicit softmax, the reference; fastest on a CPU up to some hundred tokens.",
        checks=AGREEMENT,
    )
    registry.add(
        "sdpa",
        "sddit_flash.kernels:Sdpa",
        params=SdpaParams,
        summary="PyTorch's fused scaled-dot-product attention; the one for a GPU.",
        paper="arXiv:2205.14135",
        checks=AGREEMENT,
    )
    registry.add(
        "flex",
        "sddit_flash.kernels:Flex",
        params=FlexParams,
        summary="PyTorch's FlexAttention, compiled; bias and groups without an N x N mask.",
        paper="arXiv:2412.05496",
        checks=AGREEMENT,
    )
    registry.add(
        "xformers",
        "sddit_flash.kernels:Xformers",
        params=XformersParams,
        summary="xformers' memory-efficient attention; CUDA only.",
        paper="arXiv:2112.05682",
        requires=("xformers",),
        checks=AGREEMENT,
    )
