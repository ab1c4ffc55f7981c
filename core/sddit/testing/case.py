"""Hold a component under test, and the problems found in it so far."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sddit.interfaces import Component
from sddit.plugins.host import host
from sddit.training.findings import Findings


class Case(Findings):
    """A component under test.

    `runtime` replaces what the kit would build it with. The kit sets `params`, an instance of `component.params`.
    """

    def __init__(self, component: Component[Any], runtime: Mapping[str, Any]) -> None:
        row = host().rows.get(component.origin)
        name = f"{component.kind} {component.qualified}".replace(" /", " ")
        super().__init__(name, component.kind, row.code if row and not row.builtin else "")
        self.component = component
        self.runtime = runtime
        self.params: Any = None

    def build(self, **runtime: Any) -> Any:
        """Build the component from what the kit offers, or from what the caller gave instead."""
        return self.component.build(self.params, **{**runtime, **self.runtime})
