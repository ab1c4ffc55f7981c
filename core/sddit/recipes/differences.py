"""What differs between two resolved recipes, and whether a run may go on across it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

from sddit.interfaces import Params
from sddit.recipes.merge import leaves
from sddit.recipes.recipe import is_free
from sddit.recipes.settings import EmaSettings, EvaluateSettings, StartSettings, TeacherSettings, TrainSettings

Class = Literal["free", "numeric", "structural"]

SETTINGS: Mapping[str, type[Params]] = {
    "train": TrainSettings,
    "teacher": TeacherSettings,
    "ema": EmaSettings,
    "evaluate": EvaluateSettings,
    "start": StartSettings,
}
IDENTITY = {"data.image", "data.classes", "data.fingerprint"}
"""What tells one data set from another; the rest of `data` follows from it, or is for people."""
FREE_TABLES = {"name", "tracker"}
SHAPES = {"data.image", "data.classes", "noise_schedule.name", "optimizer.name"}
"""Beside the backbone and the labelled tables, what decides the shapes of the tensors in a checkpoint."""


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[tuple[str, Any, Any, Class]]:
    """(dotted key, old value, new value, class) of every difference; None stands for a key that is not there.

    free changes no number; numeric gives other numbers from here on; structural has other tensors, so that no checkpoint of
    the one fits the other. A label that only one of them has is one difference.
    """
    found: list[tuple[str, Any, Any, Class]] = []
    for table in ("loss", "ema"):
        before, after = old.get(table, {}), new.get(table, {})
        found += [
            (f"{table}.{label}", before.get(label), after.get(label), "structural")
            for label in [*before, *(label for label in after if label not in before)]
            if (label in before) != (label in after)
        ]
    one_sided = tuple(f"{key}." for key, *_ in found)
    before, after = (
        {
            key: value
            for key, value in leaves(tables)
            if value != {} and (key in IDENTITY or not key.startswith("data."))
        }
        for tables in (old, new)
    )
    for key in [*before, *(key for key in after if key not in before)]:
        if before.get(key) != after.get(key) and not key.startswith(one_sided):
            hashed = f"{key}_sha256" in before or f"{key}_sha256" in after  # a path that may move
            found.append((key, before.get(key), after.get(key), "free" if hashed else _class(key)))
    return found


def by_leaf(found: Iterable[tuple[str, Any, Any]]) -> list[tuple[str, Any, Any]]:
    """(dotted key, old value, new value), where a table that only one side has is told setting by setting.

    A setting that is None is as if it were not there.
    """
    told: list[tuple[str, Any, Any]] = []
    for key, old, new in found:
        if isinstance(new, Mapping):
            told += [(name, old, value) for name, value in leaves(new, (key,)) if value is not None]
        elif isinstance(old, Mapping):
            told += [(name, value, new) for name, value in leaves(old, (key,)) if value is not None]
        else:
            told.append((key, old, new))
    return told


def _class(key: str) -> Class:
    table, _, rest = key.partition(".")
    if table == "backbone" or key in SHAPES or (table == "loss" and rest.endswith(".name")):
        return "structural"
    if table in FREE_TABLES or (table in SETTINGS and is_free(SETTINGS[table], rest.rpartition(".")[2])):
        return "free"
    return "numeric"
