"""Define what flows through one training step: batch, draws, views, tokens, outputs and context."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from torch import Tensor, nn

from sddit.interfaces.facts import Network, Tap
from sddit.interfaces.noise_schedule import NoiseSchedule


@dataclass(slots=True, kw_only=True)
class Batch:
    """One training batch, before noise."""

    x0: Tensor  # [B, C, H, W]
    labels: Tensor  # [B] int64 after label drop; num_classes is the null label
    true_labels: Tensor  # [B] int64 before it
    ids: Tensor  # [B] int64, index of the image in its split
    flipped: Tensor  # [B] bool
    extras: dict[str, Tensor] = field(default_factory=dict)  # what the data have of each image, by name: [B, ...]


Scope = Literal["sample", "step"]  # of a draw: one value per sample, or one for the entire batch


class Draws(Protocol):
    """Keyed randomness: a pure function of (seed, purpose, step, sample). The order of calls does not matter.

    A component's own purposes are named `<plugin>/<component>/<purpose>`. With scope="step" one value is drawn for the
    entire batch, equal on every rank; the result then has shape [1, *shape] and is on the CPU, so that it may set
    shapes.
    """

    def normal(self, purpose: str, shape: Sequence[int] = (), *, scope: Scope = "sample") -> Tensor:
        """Return standard normal numbers, [B, *shape] float32."""

    def uniform(self, purpose: str, shape: Sequence[int] = (), *, scope: Scope = "sample") -> Tensor:
        """Return uniform numbers in the open interval (0, 1), [B, *shape] float64."""


@dataclass(slots=True, kw_only=True)
class View:
    """One noisy version of the batch, and the network that receives it."""

    network: Network
    x: Tensor  # [B, C, H, W] noisy image
    t: Tensor  # [B] noise level in the schedule's own time
    labels: Tensor  # [B] int64
    x0: Tensor  # [B, C, H, W] clean target
    noise: Tensor  # [B, C, H, W] the unit noise in x
    visible: Tensor | None = None  # [B, K] int64 indices of tokens that are not hidden, rising; None: all
    groups: Tensor | None = None  # [B, N] int64, tokens of different groups do not attend to each other
    extras: dict[str, Tensor] = field(default_factory=dict)


@dataclass(slots=True)
class Tokens:
    """Tokens read at a tap."""

    patch: Tensor  # [B, n, D]
    index: Tensor | None = None  # [B, n] positions of those tokens; None: all N in order
    cls: Tensor | None = None  # [B, D], never inside `patch`

    def at(self, index: Tensor | None) -> Tensor:
        """Return the patch tokens at positions `index` [B, K] (None: all), which must have been read: [B, K, D]."""
        if index is self.index:
            return self.patch
        if index is None or self.index is not None:
            raise ValueError("tokens were read at other positions than the ones asked for")
        return self.patch.gather(1, index[:, :, None].expand(-1, -1, self.patch.shape[-1]))


@dataclass(slots=True, kw_only=True)
class Outputs:
    """Outputs of a network for one view. `raw` and `x0` are None if only taps were requested."""

    raw: Tensor | None = None  # [B, C, H, W] float32 or wider, the network's own output R
    x0: Tensor | None = None  # [B, C, H, W] c_skip x + c_out R
    extra: Tensor | None = None  # [B, C, H, W] channels beyond C: the variance fraction
    heads: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)  # further outputs: (raw, x0)
    taps: dict[Tap, Tokens] = field(default_factory=dict)


@dataclass(slots=True, kw_only=True)
class Context:
    """Context of a step for pair samplers and losses."""

    step: int
    total_steps: int
    schedule: NoiseSchedule
    draws: Draws
    num_classes: int
    ema_modules: Mapping[str, nn.Module] = field(default_factory=dict)  # the teacher's copy of the loss's own modules
    gather: Callable[[Tensor], Tensor] = lambda x: x  # [B, ...] of this rank -> of all ranks
    mean: Callable[[Tensor], Tensor] = lambda x: x  # mean over all ranks

    @property
    def progress(self) -> float:
        """Fraction of the planned steps that are done."""
        return self.step / self.total_steps
