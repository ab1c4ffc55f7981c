"""Define the contract of an attention kernel."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor

from sddit.interfaces.params import Params


class AttentionParams(Params):
    """Settings of an attention kernel: what it can serve."""

    @property
    def devices(self) -> tuple[str, ...]:
        """Device types it runs on."""
        return ("cpu", "cuda")

    @property
    def dtypes(self) -> tuple[str, ...]:
        """Precisions it computes in."""
        return ("fp32", "bf16", "fp64")

    @property
    def takes_bias(self) -> bool:
        """Return whether an additive bias per head is served."""
        return False

    @property
    def takes_groups(self) -> bool:
        """Return whether groups that may not see each other are served."""
        return False

    @property
    def backward_devices(self) -> tuple[str, ...]:
        """Device types on which it has a backward pass."""
        return self.devices


class Attention(Protocol):
    """softmax(q k^T / sqrt(d) + bias) v."""

    def __call__(
        self,
        q: Tensor,  # [B, heads, N, d]
        k: Tensor,
        v: Tensor,
        *,
        bias: Tensor | None = None,  # [heads, N, N] or [B, heads, N, N]
        groups: Tensor | None = None,  # [B, N]
    ) -> Tensor: ...
