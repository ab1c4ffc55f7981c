"""Register attention kernels: four implementations of softmax(q k^T / sqrt(d) + bias) v.

`eager` is the reference and the fastest on a CPU up to a few hundred tokens; use `sdpa` on a GPU. A recipe names its
kernel, and a kernel that does not support a run raises an error: none is replaced silently.
"""

from __future__ import annotations

from sddit import Registry, hookimpl
from sddit.interfaces import Attention
from sddit_flash.params import EagerParams, FlexParams, SdpaParams, XformersParams

AGREEMENT = {"agreement with the formula": "sddit_flash.checks:agreement"}


@hookimpl
def register_attention(registry: Registry[Attention]) -> None:
    registry.add(
        "eager",
        "sddit_flash.kernels:Eager",
        params=EagerParams,
        summary="Explicit softmax, the reference; fastest on a CPU up to a few hundred tokens.",
        checks=AGREEMENT,
    )
    registry.add(
        "sdpa",
        "sddit_flash.kernels:Sdpa",
        params=SdpaParams,
        summary="PyTorch's fused scaled-dot-product attention; recommended on a GPU.",
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
