"""Settings of the attention kernels: devices, precisions and options of each. Imports no torch."""

from __future__ import annotations

from sddit.interfaces import AttentionParams


class EagerParams(AttentionParams):
    """Explicit softmax for all devices, precisions and options; keeps the N x N weights for the backward pass."""

    @property
    def takes_bias(self) -> bool:
        return True

    @property
    def takes_groups(self) -> bool:
        return True


class SdpaParams(AttentionParams):
    """PyTorch's fused kernels, selected by PyTorch for the device."""

    @property
    def takes_bias(self) -> bool:
        return True

    @property
    def takes_groups(self) -> bool:
        return True


class FlexParams(AttentionParams):
    """FlexAttention, compiled at the first call. On a CPU it has no backward pass."""

    @property
    def dtypes(self) -> tuple[str, ...]:
        return ("fp32", "bf16")

    @property
    def takes_bias(self) -> bool:
        return True

    @property
    def takes_groups(self) -> bool:
        return True

    @property
    def backward_devices(self) -> tuple[str, ...]:
        return ("cuda",)


class XformersParams(AttentionParams):
    """xformers' memory-efficient attention: CUDA only, no groups."""

    @property
    def devices(self) -> tuple[str, ...]:
        return ("cuda",)

    @property
    def dtypes(self) -> tuple[str, ...]:
        return ("fp32", "bf16")

    @property
    def takes_bias(self) -> bool:
        return True
