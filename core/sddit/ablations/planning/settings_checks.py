"""Read `[ablation]` key by key and report what is wrong with it before arms are resolved. No torch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from sddit.ablations.planning.ablation_settings import AblationSettings
from sddit.ablations.planning.arm_checks import ArmProblems
from sddit.ablations.planning.axes import ValueLists, nested, value_lists
from sddit.errors import Problem, SdditError, nearest
from sddit.recipes.merge import Merged, leaves
from sddit.recipes.parsing import quoted
from sddit.recipes.resolve import ABLATION as TABLE
from sddit.recipes.validation import validated

NOT_IN_ARMS = {
    "ablation": "ablations cannot be nested",
    "extends": "set it at the top of the file, or in an arm",
    "plugins": "set it at the top of the file, for all arms",
}
EXTENDS = "extends"  # the only one of them that is allowed in an arm: the recipe that the arm is based on
MAX_ARMS = 1000  # the lists of a grid multiply


def read_settings(merged: Merged, problems: ArmProblems) -> tuple[AblationSettings, set[str]]:
    """Return `[ablation]` without the keys that are invalid, and the names of those keys, spelling corrected."""
    valid: dict[str, Any] = {}
    invalid: set[str] = set()
    for key, piece in _pieces(merged):
        try:
            _read(piece, merged)
        except SdditError as failure:
            problems.add(failure.problems)
            invalid.add(key if key in AblationSettings.model_fields else nearest(key, AblationSettings.model_fields))
        else:
            valid[key] = {**valid[key], **piece[key]} if key == "arms" and key in valid else piece[key]
    return _read(valid, merged), invalid


def _read(table: Mapping[str, Any], merged: Merged) -> AblationSettings:
    return validated(AblationSettings, table, table=TABLE, where=merged.place, fix="sddit-run show ablation")


def _pieces(merged: Merged) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (key, table with that key) for each key of `[ablation]`, and for each of its arms."""
    given = merged.tables[TABLE]
    if not isinstance(given, dict):
        problem = Problem("SD-R103", f"{TABLE!r} must be a table", merged.place(TABLE), quoted(given), f"[{TABLE}]")
        raise SdditError(problem)
    for key, value in given.items():
        if key == "arms" and isinstance(value, dict):
            yield from ((key, {key: {label: table}}) for label, table in value.items())
        else:
            yield key, {key: value}


def usable_arms(settings: AblationSettings, merged: Merged, problems: ArmProblems) -> dict[str, dict[str, Any]]:
    """Return the arms without keys that no arm may have, and report those."""
    arms: dict[str, dict[str, Any]] = {}
    for label, table in settings.arms.items():
        usable: dict[str, Any] = {}
        for key, value in leaves(table):
            forbidden = list(_forbidden_keys(f"{TABLE}.arms.{label}", [key], merged))
            problems.add(forbidden)
            if not forbidden:
                usable[key] = value
        arms[label] = nested(usable)
    return arms


def usable_lists(settings: AblationSettings, merged: Merged, problems: ArmProblems) -> list[ValueLists]:
    """Return the lists that can be crossed, and report the others; none if there would be too many arms."""
    usable: list[ValueLists] = []
    for axis in value_lists(settings):
        wrong = [
            *_not_lists(*axis, merged),
            *_forbidden_keys(*axis, merged),
            *_set_twice(axis, usable, settings, merged),
        ]
        problems.add(wrong)
        if not wrong:
            usable.append(axis)
    arms = max(1, len(settings.arms)) * math.prod(len(next(iter(table.values()))) for _, table in usable)
    if arms <= MAX_ARMS:
        return usable
    what, fix = "too many arms", "shorten the lists of [ablation.grid]"
    problems.add([Problem("SD-R150", what, merged.place(TABLE), f"{arms:,} arms", f"at most {MAX_ARMS:,}", fix)])
    return []


def _not_lists(given: str, table: Mapping[str, Any], merged: Merged) -> Iterator[Problem]:
    """Yield a problem for each key of an axis that holds no list of values, and for lists of different lengths."""
    if not table:
        yield Problem("SD-R150", "a table of pairs is empty", merged.place(given), fix="add lists, or remove it")
    lengths = {key: len(values) for key, values in table.items() if isinstance(values, list) and values}
    for key in [key for key in table if key not in lengths]:
        where, got = merged.place(f"{given}.{key}"), f"{key} = {quoted(table[key])}"
        what, expect = f"{key!r} of [{given}] needs a list of values", "one value or more in [ ]"
        yield Problem("SD-R150", what, where, got, expect, f"{key} = [...]")
    if len(set(lengths.values())) > 1:
        got = ", ".join(f"{count} of {key}" for key, count in lengths.items())
        where = merged.place(given)
        yield Problem("SD-R150", "paired lists differ in length", where, got, "as many values of each key")


def _set_twice(
    axis: ValueLists, earlier: Iterable[ValueLists], settings: AblationSettings, merged: Merged
) -> Iterator[Problem]:
    """Yield a problem for each key of an axis that an earlier axis or an arm sets too."""
    given, keys = axis
    for other, others in earlier:
        for key in _overlapping(keys, list(others)):
            what, got = f"{key!r} is crossed with itself", f"[{other}] and [{given}]"
            yield Problem("SD-R150", what, merged.place(f"{given}.{key}"), got, "one list of it")
    for label, table in settings.arms.items():
        for key in _overlapping(keys, list(dict(leaves(table)))):
            what = f"{key!r} is set by arm {label!r} and by [{given}], which would undo the arm"
            where = merged.place(f"{given}.{key}")
            yield Problem("SD-R150", what, where, fix=f"set it in the arms or in [{given}]")


def _overlapping(keys: Iterable[str], others: Sequence[str]) -> list[str]:
    """Return the keys that equal, contain or are part of one of the others."""
    return [k for k in keys if any(k == o or k.startswith(f"{o}.") or o.startswith(f"{k}.") for o in others)]


def _forbidden_keys(given: str, keys: Iterable[str], merged: Merged) -> Iterator[Problem]:
    """Yield a problem for each key that only the ablation may set, not one arm."""
    for key in keys:
        where, table = merged.place(f"{given}.{key}"), key.partition(".")[0]
        of_arm = given.startswith(f"{TABLE}.arms.")
        if table in NOT_IN_ARMS and not (key == EXTENDS and of_arm):
            yield Problem("SD-R150", f"{table!r} is not allowed in [{given}]", where, key, fix=NOT_IN_ARMS[table])
        if key == "train.steps":
            what, fix = "the budget decides how long an arm trains", "set train.steps for all arms, in [train]"
            yield Problem("SD-R150", what, where, f"{key} in [{given}]", fix=fix)
