"""Define the settings contract of a backbone. `sddit.Backbone` is the class of the network itself."""

from __future__ import annotations

from collections.abc import Sequence

from sddit.interfaces.facts import Cost, Shapes, Tap
from sddit.interfaces.params import Params


class BackboneParams(Params):
    """Settings of a backbone."""

    def grid(self, shapes: Shapes) -> tuple[int, int]:
        """Return the number of tokens along H and W."""
        raise NotImplementedError

    def width(self, tap: Tap) -> int:
        """Return D of the tokens at `tap`. Raises ValueError for an unknown tap and names the known ones."""
        raise NotImplementedError

    def tap_text(self, tap: Tap) -> str:
        """Return where `tap` reads, for the plan: `block 2 of 6`."""
        return str(tap)

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
        """Return the forward cost of one image with `num_kept` visible tokens, up to the last tap if not `output`."""
        return None
