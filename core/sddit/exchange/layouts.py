"""The published layouts of weights that this installation reads and writes. No torch."""

from __future__ import annotations

from typing import Any

from sddit.plugins.host import registry
from sddit.plugins.registry import Component

OURS = "ours"  # the layout of our own names, which holds every network

UNDROPPED = "These weights were trained without dropped labels: the null label means nothing. Do not guide."


def layouts() -> dict[str, Component[Any]]:
    """Every published layout that some backbone offers, with that backbone."""
    return {layout: component for component in registry("backbones") for layout, _ in component.formats}


def known_layouts() -> list[str]:
    """What `sddit-run export --layout` may say."""
    return [OURS, *sorted(layouts())]
