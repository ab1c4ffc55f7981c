"""List the keys in which a recipe differs from its base recipe, the one that it extends."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from sddit.cli.common import setting_text
from sddit.recipes.merge import Merged, chain, parse_override, setting_at, stacked
from sddit.recipes.parsing import shown
from sddit.recipes.recipe import Recipe

SKIPPED = ("plugins", "ablation")  # top-level keys that are not settings of the run
MAX_TEXT = 48  # characters of one value

Key = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class SettingChange:
    """A key that the recipe file or the command line sets, with its value in the base recipe."""

    key: str
    old: str
    new: str
    from_command_line: bool


@dataclass(frozen=True, slots=True)
class BaseChanges:
    """Changes of a recipe against its base."""

    base: str  # path of the base recipe; empty: the recipe extends none, and `old` is the default
    changes: tuple[SettingChange, ...]


def changes_from_base(merged: Merged, recipe: Recipe) -> BaseChanges:
    """Compare what the recipe file and the command line set with the recipe that the file extends.

    A resolved recipe (`.json`) states every key, so it is its own base: only the command line changes it. The same
    holds for a file that extends none, if there are overrides.
    """
    assert merged.path is not None, "a recipe that was read has a path"
    layers = chain(merged.path)
    own_base = merged.resolved or (len(layers) == 1 and bool(merged.overrides))
    inherited = layers if own_base else layers[:-1]
    base = stacked(merged.path, inherited, ()).tables if inherited else {}
    in_file = {} if own_base else layers[-1].tables
    keys = dict.fromkeys(setting_keys(in_file), False)
    keys |= {parse_override(text).path: True for text in merged.overrides}
    changes = []
    for key, from_command_line in keys.items():
        inherited_value = setting_at(base, key)
        default = default_value(recipe, key) if inherited_value is None else None
        old, new = setting_text(inherited_value if default is None else default), setting_at(merged.tables, key)
        if key[0] not in SKIPPED and old != setting_text(new):
            mark = "" if default is None else " (default)"
            changes.append(
                SettingChange(".".join(key), shorten(old) + mark, shorten(setting_text(new)), from_command_line)
            )
    return BaseChanges(shown(inherited[-1].path) if inherited else "", tuple(changes))


def setting_keys(table: Mapping[str, Any], path: Key = ()) -> Iterator[Key]:
    """Yield the path of every setting in a table. A value schedule with start and end is one setting."""
    for name, value in table.items():
        if isinstance(value, Mapping) and not {"start", "end"} <= value.keys():
            yield from setting_keys(value, (*path, name))
        else:
            yield (*path, name)


def default_value(recipe: Recipe, key: Key) -> Any:
    """Return the default of a key of the resolved recipe; None if it has none."""
    if key == ("seed",):
        return 0
    labelled = {"loss": recipe.losses, "ema": recipe.ema, "tracker": recipe.trackers, "features": recipe.features}
    entry: Any
    if key[0] in labelled:
        entry, path = labelled[key[0]].get(key[1] if len(key) > 1 else ""), key[2:]
    else:
        entry, path = getattr(recipe, key[0], None), key[1:]
    model = getattr(entry, "params", entry)
    return field_default(model, path) if isinstance(model, BaseModel) and path else None


def field_default(model: BaseModel, path: Sequence[str]) -> Any:
    """Return the default of a field, given by alias, or of a field inside the default of a field; None if none."""
    for name, field in type(model).model_fields.items():
        if path[0] == (field.alias or name) and not field.is_required():
            value = field.get_default(call_default_factory=True)
            value = value.model_dump(mode="json", by_alias=True) if isinstance(value, BaseModel) else value
            return setting_at({path[0]: value}, path)
    return None


def shorten(text: str) -> str:
    """Cut a text to MAX_TEXT characters."""
    return text if len(text) <= MAX_TEXT else f"{text[: MAX_TEXT - 3]}..."
