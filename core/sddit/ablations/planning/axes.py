"""Turn the arms, grid and pairs of `[ablation]` into axes of changes, whose product gives the arms. No torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sddit.ablations.planning.ablation_settings import AblationSettings
from sddit.recipes.merge import leaves
from sddit.recipes.parsing import quoted
from sddit.recipes.resolve import ABLATION as TABLE
from sddit.value_schedules import Ramp

GRID, PAIRS = f"{TABLE}.grid", f"{TABLE}.pairs"
ValueLists = tuple[str, dict[str, Any]]
"""(table it is set in, lists of equal length by dotted key)."""
SUFFIX_PARTS = 2  # parts of a dotted key that distinguish `loss.a.weight` from `loss.b.weight`, or name a schedule


@dataclass(frozen=True, slots=True)
class ArmChange:
    """One value of one axis: a named arm, a value of the grid, or values of a pair."""

    label: str
    table: Mapping[str, Any]  # merged into the recipe
    given: str  # dotted key of the table it is set in: `ablation.arms.masked`


def axes(arms: Mapping[str, Mapping[str, Any]], lists: Sequence[ValueLists]) -> list[list[ArmChange]]:
    """Return the axes in the order of the file: the arms, the keys of the grid, the tables of pairs."""
    short = short_names([key for _, table in lists for key in table])
    found = [[ArmChange(label, table, f"{TABLE}.arms.{label}") for label, table in arms.items()]]
    for given, table in lists:
        points = [dict(zip(table, values, strict=True)) for values in zip(*table.values(), strict=True)]
        found.append([ArmChange(point_label(point, short), nested(point), given) for point in points])
    return [axis for axis in found if axis]


def value_lists(settings: AblationSettings) -> list[ValueLists]:
    """Return the lists of each key of the grid, and of each table of pairs."""
    grid = [(GRID, {key: values}) for key, values in leaves(settings.grid)]
    return [*grid, *((PAIRS, dict(leaves(table))) for table in settings.pairs)]


def nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return values by dotted key as nested tables: `{"a": {"b": 1}}` for `{"a.b": 1}`."""
    tables: dict[str, Any] = {}
    for key, value in values.items():
        *parents, last = key.split(".")
        table = tables
        for name in parents:
            table = table.setdefault(name, {})
        table[last] = value
    return tables


def short_names(keys: Sequence[str]) -> dict[str, str]:
    """Return the last part of each key, or the last two where that is ambiguous or a field of a schedule."""
    tails = Counter(key.rpartition(".")[2] for key in keys)
    short = {}
    for key in keys:
        tail = key.rpartition(".")[2]
        unique = tails[tail] == 1 and tail not in Ramp.model_fields
        short[key] = tail if unique else ".".join(key.split(".")[-SUFFIX_PARTS:])
    return short


def point_label(point: Mapping[str, Any], short: Mapping[str, str]) -> str:
    """Return the label of values by dotted key, such as `mask_ratio=0.1`."""
    texts = {key: value if isinstance(value, str) else quoted(value) for key, value in point.items()}
    return " ".join(f"{short[key]}={text}" for key, text in texts.items())


def baseline_label(settings: AblationSettings, changes: Sequence[ArmChange], labels: Sequence[str]) -> str:
    """Return the arm that `baseline` names, or the named arm at the same point of the grid."""
    if settings.baseline in labels:
        return settings.baseline
    if not settings.arms:
        return labels[0]
    named = settings.baseline or next(iter(settings.arms))
    return " ".join([named, *(change.label for change in changes[1:])])
