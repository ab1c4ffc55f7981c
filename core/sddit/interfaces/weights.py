"""Define converters between our weights and published layouts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from torch import Tensor

from sddit.interfaces.facts import Shapes

NOTHING: Mapping[str, Any] = MappingProxyType({})  # no argument of a published constructor is given


@dataclass(frozen=True, slots=True)
class WeightDescription:
    """A published network as settings of our components."""

    backbone: Mapping[str, Any]  # settings of the backbone that offers the layout
    shapes: Shapes  # that it is built for
    noise_schedule: tuple[str, Mapping[str, Any]] | None = None  # name and settings; None: not one of ours
    recipe: Mapping[str, Any] = field(default_factory=dict)  # published settings of views, losses, sampler, guidance


class WeightFormat(Protocol):
    """A published layout of weights: names, orders and shapes of one backbone's tensors, there and back.

    A backbone offers its layouts as `formats={layout: "module:attribute"}`; `sddit-run import`, `export` and
    `sddit.load` go through them. `config` is what the published network's constructor takes, under the published names.
    For any network that the layout can hold, `describe(config(params, shapes, schedule))` is that network again, and so
    are its tensors after `to_theirs` and `to_ours`.
    """

    files: tuple[str, str]  # where an exported folder holds the config (JSON) and the weights (safetensors)
    note: str  # a note for users who load such a folder elsewhere, where {num_classes} is filled in; empty: none
    idle: tuple[str, ...]  # further arguments of the constructor, which leave the network as the others make it

    def describe(self, config: Mapping[str, Any]) -> WeightDescription:
        """Return the network that a constructor would make.

        Raises KeyError for a missing argument, ValueError for a wrong one.
        """

    def config(self, params: Any, shapes: Shapes, schedule: Mapping[str, Any]) -> dict[str, Any]:
        """Return all arguments of a network, as JSON. Raises ValueError, with the reason, if the layout cannot hold it.

        `schedule` are the settings of the noise schedule: some layouts state one of them among the arguments.
        """

    def infer(
        self, state: Mapping[str, Tensor], given: Mapping[str, Any] = NOTHING
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return (the arguments that follow from names and shapes, guesses of the others for a network of that size).

        `given` are arguments that the caller set. If several values describe the tensors (an MLP of 118 rows on 44 has
        the ratio 2.7, or 118 / 44), the given one is returned; if the tensors contradict it, the value that they imply.
        Raises KeyError for tensors that are not of this layout.
        """

    def to_ours(self, state: Mapping[str, Tensor], given: Mapping[str, Any] = NOTHING) -> dict[str, Tensor]:
        """Return the tensors under our names, fixed tables included: they load strictly. `given` is as for `infer`.

        Raises KeyError for an unknown name.
        """

    def to_theirs(self, state: Mapping[str, Tensor], params: Any, shapes: Shapes) -> dict[str, Tensor]:
        """Return the parameters of our backbone under the names of the layout."""
