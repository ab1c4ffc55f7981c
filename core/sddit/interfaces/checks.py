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

    component: Component[Any] | None = None  # the one whose check it is, or the check itself if it belongs to none
    device: Literal["cpu", "cuda"] = "cpu"
    full: bool = False  # take the time it needs
    fixtures: tuple[Path, ...] = ()  # folders that may hold numbers of published implementations


class CheckSkipped(Exception):
    """Raised by a check for want of something: a file, a device, a compiler.

    It is then listed as skipped, not as passed.
    """


Check = Callable[[CheckContext], Iterable[Measurement]]
"""A numerical check. It is registered with its component, as `checks={"what it shows": "module:function"}`, or by the
hook `register_checks` if it belongs to none. It may yield as it goes.
"""
