"""List the published weight layouts that the installed plugins read and write. Imports no torch."""

from __future__ import annotations

from typing import Any

from sddit.interfaces import Component
from sddit.plugins.host import registry

OURS = "ours"  # the layout with our own parameter names, which can hold every network

NO_LABEL_DROP = (
    "These weights were trained without label dropout, so the null label is untrained: sample without guidance."
)


def layouts() -> dict[str, Component[Any]]:
    """Return {layout: backbone component that offers it}."""
    return {layout: component for component in registry("backbones") for layout, _ in component.formats}


def known_layouts() -> list[str]:
    """Return the values that `sddit-run export --layout` accepts."""
    return [OURS, *sorted(layouts())]
