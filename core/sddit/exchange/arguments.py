"""Arguments of a published constructor: tables in tables. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def together(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Tables laid over each other, key by key."""
    merged: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.items():
            below = merged.get(key)
            both = isinstance(value, Mapping) and isinstance(below, Mapping)
            merged[key] = together(below, value) if both else value  # type: ignore[arg-type]  # both: below is a table
    return merged


def without(table: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """What of a table is not given."""
    left = {}
    for key, value in table.items():
        if isinstance(value, Mapping) and isinstance(inner := given.get(key), Mapping):
            left[key] = without(value, inner)
        elif key not in given:
            left[key] = value
    return {key: value for key, value in left.items() if value != {}}


def flat(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted key -> value. Keys that begin with `_` are notes of other programs."""
    found: dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{key}.")
        elif not key.startswith("_"):
            found[f"{prefix}{key}"] = value
    return found
