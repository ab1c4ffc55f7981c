"""Define the settings contract of a backbone. `sddit.Backbone` is the class of the network itself."""

from __future__ import annotations

from collections.abc import Sequence

from sddit.interfaces.facts import Cost, Shapes, Tap
from sddit.interfaces.params import Params


class BackboneParams(Params):
    """Settings of a backbone."""

    def grid(self, shapes: Shapes) -> tuple[int, int]:
        """Tokens along H and W."""
        raise NotImplementedError

    def width(self, tap: Tap) -> int:
        """D of the tokens at `tap`. Raises ValueError for a tap that does not exist, with the ones that do."""
        raise NotImplementedError

    @property
    def has_cls(self) -> bool:
        """Return whether taps carry a class token."""
        return False

    @property
    def supports_masking(self) -> bool:
        """Return whether a view may hide tokens from this backbone."""
        return False

    @property
    def needs_bias(self) -> bool:
        """Return whether its attention adds a bias, which not every kernel serves."""
        return False

    def cost(self, shapes: Shapes, *, num_kept: int, taps: Sequence[Tap] = (), output: bool = True) -> Cost | None:
        """Return one image forward with `num_kept` visible tokens, cut after the deepest tap if `output` is False."""
        return None
