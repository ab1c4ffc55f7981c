"""Define settings of a component, with its shapes and cost. Torch-free."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from sddit.errors import Problem

Tap = str | float | int
"""Where tokens are read: `encoder`, `decoder`, a depth share such as 0.3, or a block number counted from 1."""

Network = Literal["student", "teacher"]


class Params(BaseModel):
    """Settings of one component: strict types, no unknown keys, finite numbers, every field described."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)

    # `recipe` is a `sddit.interfaces.RecipeView`; it is `Any` here because the view refers to the settings classes.

    def check(self, recipe: Any) -> Iterable[Problem]:
        """Yield what is wrong between this component and the other slots of the recipe. None by default."""
        return ()

    def idle(self, recipe: Any) -> Iterable[str]:
        """Yield names of own keys that have no effect in this recipe; a warning names those that are set."""
        return ()

    def warnings(self, recipe: Any) -> Iterable[str]:
        """Yield one sentence for each combination that is allowed but probably a mistake, naming its keys."""
        return ()


@dataclass(frozen=True, slots=True)
class Cost:
    """What one image costs, by formula. FLOPs count two per multiply-add, forward only."""

    parameters: int = 0
    flops: float = 0.0
    activations: float = 0.0  # numbers kept for the backward pass

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.parameters + other.parameters,
            self.flops + other.flops,
            self.activations + other.activations,
        )

    def times(self, factor: float) -> Cost:
        """The same parameters, run `factor` times as often."""
        return Cost(self.parameters, self.flops * factor, self.activations * factor)


@dataclass(frozen=True, slots=True)
class Shapes:
    """What a backbone is built for. `outputs` counts multiples of C in the network's output (2: learned variance)."""

    image: tuple[int, int, int]  # C, H, W
    num_classes: int
    outputs: int = 1
