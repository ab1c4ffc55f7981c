"""Compare two resolved recipes, and classify whether a run can continue across each difference."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

from sddit.recipes.merge import leaves
from sddit.recipes.settings import SETTINGS, is_free

Class = Literal["free", "numeric", "structural"]

IDENTITY = {"data.image", "data.classes", "data.fingerprint"}
"""Keys that identify a data set; the rest of `data` follows from them, or is informative."""
FREE_TABLES = {"name", "tracker"}
SHAPES = {"data.image", "data.classes", "noise_schedule.name", "optimizer.name"}
"""Keys that determine the shapes of tensors in a checkpoint, in addition to the backbone and the labelled tables."""


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[tuple[str, Any, Any, Class]]:
    """Return (dotted key, old value, new value, class) of every difference; None: the key is not set.

    free changes no number; numeric gives other numbers from here on; structural changes tensors, so that checkpoints do
    not fit. A label that only one of them has is one difference.
    """
    found: list[tuple[str, Any, Any, Class]] = []
    for table in ("loss", "ema"):
        before, after = old.get(table, {}), new.get(table, {})
        found += [
            (f"{table}.{label}", before.get(label), after.get(label), "structural")
            for label in before | after
            if (label in before) != (label in after)
        ]
    one_sided = tuple(f"{key}." for key, *_ in found)
    before, after = ({key: value for key, value in leaves(tables) if value != {}} for tables in (old, new))
    for key in before | after:
        follows = key.startswith("data.") and key not in IDENTITY
        if before.get(key) != after.get(key) and not follows and not key.startswith(one_sided):
            hashed = f"{key}_sha256" in before | after  # a path that may move
            found.append((key, before.get(key), after.get(key), "free" if hashed else _class(key)))
    return found


def by_leaf(found: Iterable[tuple[str, Any, Any]]) -> list[tuple[str, Any, Any]]:
    """Return (dotted key, old value, new value), with a table that only one side has split into its settings.

    A setting of None counts as not set.
    """
    leaf_differences: list[tuple[str, Any, Any]] = []
    for key, old, new in found:
        if isinstance(new, Mapping):
            leaf_differences += [(name, old, value) for name, value in leaves(new, (key,)) if value is not None]
        elif isinstance(old, Mapping):
            leaf_differences += [(name, value, new) for name, value in leaves(old, (key,)) if value is not None]
        else:
            leaf_differences.append((key, old, new))
    return leaf_differences


def _class(key: str) -> Class:
    table, _, rest = key.partition(".")
    if table == "backbone" or key in SHAPES or (table == "loss" and rest.endswith(".name")):
        return "structural"
    if table in FREE_TABLES or (table in SETTINGS and is_free(SETTINGS[table], rest.rpartition(".")[2])):
        return "free"
    return "numeric"
