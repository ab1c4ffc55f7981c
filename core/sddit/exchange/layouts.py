"""List published weight layouts, and handle the arguments of their constructors as nested tables. Imports no torch."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sddit.errors import error
from sddit.interfaces import Component
from sddit.plugins.host import registry
from sddit.recipes.merge import leaves
from sddit.storage.atomic import open_file
from sddit.storage.output_folder import verify_file

MAX_CONFIG = 2**20  # bytes
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


def merge_tables(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Merge tables key by key; later layers win."""
    merged: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.items():
            below = merged.get(key)
            both = isinstance(value, Mapping) and isinstance(below, Mapping)
            merged[key] = merge_tables(below, value) if both else value  # type: ignore[arg-type]  # both are tables
    return merged


def flatten(table: Mapping[str, Any]) -> dict[str, Any]:
    """Return {dotted key: value}. Keys that begin with `_` are skipped: they are notes of other programs."""
    return {key: value for key, value in leaves(table) if value != {} and not key.rpartition(".")[2].startswith("_")}


def read_config_file(path: Path) -> dict[str, Any]:
    """Return a JSON object: arguments of a published constructor. Raises SD-C454 for anything else."""
    verify_file(path)
    try:
        with os.fdopen(open_file(path), "rb") as file:
            value = json.loads(file.read(MAX_CONFIG))
    except (OSError, ValueError, RecursionError) as fault:
        raise error(
            "SD-C454", "cannot read the config", where=str(path), got=str(fault), expect="JSON, or KEY=VALUE"
        ) from None
    if not isinstance(value, dict):
        raise error("SD-C454", "the config is not a table", where=str(path), expect="a JSON object")
    return value
