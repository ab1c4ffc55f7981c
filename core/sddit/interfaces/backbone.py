"""Define the contract of a backbone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

from sddit.interfaces.batch import Tokens
from sddit.interfaces.params import Cost, Params, Shapes, Tap


class BackboneParams(Params):
    """Face of a backbone."""

    def grid(self, shapes: Shapes) -> tuple[int, int]:
        """Tokens along H and W."""
        raise NotImplementedError

    def width(self, tap: Tap) -> int:
        """D of the tokens at `tap`. Raises ValueError for a tap that does not exist, with the ones that do."""
        raise NotImplementedError

    @property
    def has_cls(self) -> bool:
        """Whether taps carry a class token."""
        return False

    @property
    def supports_masking(self) -> bool:
        """Whether a view may hide tokens from this backbone."""
        return False

    @property
    def needs_bias(self) -> bool:
        """Whether its attention adds a bias, which not every kernel serves."""
        return False

    def cost(self, shapes: Shapes, *, num_kept: int, taps: Sequence[Tap] = (), output: bool = True) -> Cost | None:
        """One image forward with `num_kept` visible tokens, cut after the deepest tap if `output` is False."""
        return None


class Backbone(Protocol):
    """The network F. Its output heads are exported with it."""

    blocks: nn.ModuleList  # in depth order

    def __call__(
        self,
        x: Tensor,  # [B, C, H, W], already scaled by c_in
        c_noise: Tensor,  # [B]
        labels: Tensor,  # [B]
        *,
        taps: Sequence[Tap] = (),
        output: bool = True,
        visible: Tensor | None = None,  # [B, K]
        groups: Tensor | None = None,  # [B, N]
    ) -> tuple[Tensor | None, dict[str, Tensor], dict[Tap, Tokens]]:
        """(raw [B, outputs * C, H, W] or None, further heads, taps)."""
        ...

    def truncate(self, taps: Sequence[Tap]) -> None:
        """Drop everything that is not needed to reach `taps`: a teacher carries no decoder."""
        ...

    def set_checkpointing(self, on: bool) -> None:
        """Recompute each block in the backward pass instead of keeping its activations."""
        ...

    def init_parameter(self, name: str, parameter: Tensor, generator: torch.Generator) -> None:
        """Give one parameter its initial values, from a generator keyed by the seed and this name. Terms may have it too."""
        ...
