"""Define the numerical checks that `sddit-run verify` runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sddit.interfaces.component import Component


@dataclass(frozen=True, slots=True)
class Measurement:
    """One measured number, with the bound it must satisfy. NaN satisfies none."""

    what: str  # what was measured: "order of convergence, distance from 2"
    value: float
    tolerance: float
    relation: Literal["<=", ">="] = "<="

    @property
    def holds(self) -> bool:
        """Return whether the number satisfies its bound."""
        return self.value >= self.tolerance if self.relation == ">=" else self.value <= self.tolerance


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckContext:
    """Machine and options of a check."""

    component: Component[Any] | None = None  # the one whose check it is; None for a check of the core
    device: Literal["cpu", "cuda"] = "cpu"
    full: bool = False  # run the slow, complete version
    fixtures: tuple[Path, ...] = ()  # folders that may hold numbers of published implementations


class CheckSkipped(Exception):
    """Raised by a check that needs a file, a device or a compiler that is missing. The check counts as skipped."""


Check = Callable[[CheckContext], Iterable[Measurement]]
"""A numerical check, registered as `checks={"what it shows": "module:function"}`. It may yield as it goes."""
