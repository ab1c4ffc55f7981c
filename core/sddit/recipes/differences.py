"""Compare two resolved recipes, and classify whether a run can continue across each difference."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from pydantic import BaseModel

from sddit.errors import SdditError
from sddit.interfaces.params import is_marked, is_omitted_default
from sddit.plugins.discovery import OURS
from sddit.plugins.host import host
from sddit.recipes.field_types import nested_settings
from sddit.recipes.merge import leaves
from sddit.recipes.selection import LABELLED, SLOTS
from sddit.recipes.settings import SETTINGS
from sddit.storage.run_folder import RUN_IDS

Class = Literal["free", "numeric", "structural"]
Difference = tuple[str, Any, Any, Class]

IDENTITY = {"data.image", "data.classes", "data.fingerprint"}
"""Keys that identify a data set; the rest of `data` follows from them, or is informative."""
FREE_TABLES = {"name", "tracker"}
SHAPES = {"data.image", "data.classes", "noise_schedule.name", "optimizer.name"}
"""Keys that determine the shapes of tensors in a checkpoint, in addition to the backbone and the labelled tables."""


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[Difference]:
    """Return (dotted key, old value, new value, class) of every difference; None: the key is not set.

    free changes no number; numeric gives other numbers from here on; structural changes tensors, so that checkpoints do
    not fit. A label that only one of them has is one difference. A key of a later version that has its default does
    not differ from none.
    """
    found: list[Difference] = []
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
        follows = key == RUN_IDS or (key.startswith("data.") and key not in IDENTITY)
        if before.get(key) != after.get(key) and not follows and not key.startswith(one_sided):
            settings, name = _innermost(*_settings_of(key, after if key in after else before))
            if _is_later_default(settings, name, [side[key] for side in (before, after) if key in side]):
                continue
            hashed = f"{key}_sha256" in before | after  # a path that may move
            is_free = hashed or (settings is not None and is_marked(settings, name, "free"))
            found.append((key, before.get(key), after.get(key), "free" if is_free else _class(key)))
    return found


def _settings_of(key: str, values: Mapping[str, Any]) -> tuple[type[BaseModel] | None, str]:
    """Return the settings class of the table of a dotted key, None if it is not known here; and the key in it."""
    table, _, name = key.partition(".")
    if table in SETTINGS:
        return SETTINGS[table], name.partition(".")[2] if table == "ema" else name
    kind = SLOTS.get(table) or LABELLED.get(table)
    if table in LABELLED:
        label, _, name = name.partition(".")
        table = f"{table}.{label}"
    try:
        return (host().registries.all()[kind].get(str(values.get(f"{table}.name"))).params if kind else None), name
    except SdditError:  # of a plugin that is not loaded
        return None, name


def _innermost(settings: type[BaseModel] | None, name: str) -> tuple[type[BaseModel] | None, str]:
    """Return the settings class that has a dotted key, such as `decoder.depth`, and the key in it."""
    key, _, rest = name.partition(".")
    inside = nested_settings(settings, key) if settings is not None and rest else None
    return (settings, name) if inside is None else _innermost(inside, rest)


def _is_later_default(settings: type[BaseModel] | None, name: str, stated: Sequence[Any]) -> bool:
    """Return whether only one side states a key, which is marked `omit_default`, and its value is the default."""
    return settings is not None and len(stated) == 1 and is_omitted_default(settings, name, stated[0])


def joined_revision(found: Sequence[Difference]) -> list[Difference]:
    """Return the differences with one of key `code` for the plugins of ours, whose numerics revision is the same."""
    ours = [
        change
        for change in found
        if change[0].startswith("code.") and all(str(side or OURS).split(" ")[0] == OURS for side in change[1:3])
    ]
    if len(ours) < 2:
        return list(found)
    old, new = (next((change[side] for change in ours if change[side]), None) for side in (1, 2))
    return [*(change for change in found if change not in ours), ("code", old, new, "numeric")]


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
    return "free" if table in FREE_TABLES else "numeric"
