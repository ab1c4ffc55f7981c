"""The resolved recipe in the report of a run: one row per key, with its origin."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from sddit.reports.run.run_data import ReportData

DEFAULT = "default"  # how the origin of an untouched setting begins


@dataclass(frozen=True, slots=True)
class Setting:
    """One key of the resolved recipe."""

    key: str  # dotted
    value: str
    origin: str

    @property
    def untouched(self) -> bool:
        return self.origin.startswith(DEFAULT)


def settings(run: ReportData) -> list[Setting]:
    """Return the resolved recipe, one row per key.

    A key without an origin has that of the nearest table with one, or is a default.
    """
    return [Setting(key, _text(value), _origin(run.origins, key, value)) for key, value in _flat(run.recipe)]


def _flat(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in table.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping) and value and not {"start", "end"} <= value.keys():
            yield from _flat(value, f"{key}.")
        else:
            yield key, value


def _text(value: Any) -> str:
    """Return a value as in a recipe; a value schedule as `1 → 0.5 (shape cosine)`."""
    match value:
        case {} if not value:
            return "none"
        case {"start": start, "end": end, **rest}:
            how = ", ".join(f"{name} {_text(part)}" for name, part in rest.items())
            return f"{_text(start)} → {_text(end)}" + (f" ({how})" if how else "")
        case bool():
            return "true" if value else "false"
        case None:
            return "none"
        case float():
            return f"{value:g}"
        case list() | tuple():
            return ", ".join(_text(part) for part in value) or "none"
    return str(value)


def _origin(origins: Mapping[str, str], key: str, value: Any) -> str:
    key = f"{key}.start" if isinstance(value, Mapping) else key  # a value schedule is noted by its parts
    while key:
        if key in origins:
            return origins[key]
        key = key.rpartition(".")[0]
    return DEFAULT
