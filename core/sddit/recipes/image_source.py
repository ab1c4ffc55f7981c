"""Find the images that a command is given: a path, a run, a recipe, or the name of an included data set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sddit.errors import error, nearest
from sddit.interfaces import Component, DatasetParams, Params, Selected
from sddit.plugins.host import registry
from sddit.recipes.merge import COMMAND_LINE, Merged, override
from sddit.recipes.real_images import real_images
from sddit.recipes.recipe import Recipe
from sddit.recipes.resolve import resolve, resolve_run
from sddit.recipes.selection import absolute_paths
from sddit.recipes.validation import validated
from sddit.storage.run_folder import RECIPE

UNUSABLE = "SD-T943"
EXPECTED = "a folder of images, a run folder or a recipe"


def recipe_of(source: Path) -> Recipe | None:
    """Return the recipe of a run folder or of a recipe file; None for another source. Raises the recipe's problems."""
    if source.suffix == ".toml":
        return resolve(source)
    return resolve_run(source) if (source / RECIPE).is_file() else None


def dataset_of(
    source: Path, settings: Mapping[str, Any], *, stated: Mapping[str, Any], by_name: bool = False
) -> Selected[DatasetParams]:
    """Return the data set with the images of a source.

    Args:
        source: a run folder or a recipe: its own data set; or images that a data set `reads`.
        settings: keys of `[dataset]` for such images.
        stated: keys with another default than that of the data set.
        by_name: whether the source may be the name of a data set that needs no path, such as `emoji`.

    Raises:
        SdditError: SD-T943 if no data set or several read the source, or for settings of a run or a recipe; the
            problems of the settings.
    """
    if (recipe := recipe_of(source)) is not None:
        if settings:
            what, fix = "the data set of a run or a recipe has its own settings", "leave them out"
            got = " ".join(f"dataset.{key}" for key in settings)
            raise error(UNUSABLE, what, where=COMMAND_LINE, got=got, fix=fix)
        return real_images(recipe)
    if by_name and not source.exists() and (named := _included(str(source))) is not None:
        return _selected(named, settings, "dataset")
    table = {"path": str(source.resolve()), **stated, **settings}
    name = table.pop("name", None) or _reader_of(source, by_name=by_name)
    if "size" not in table:
        raise error(UNUSABLE, "the size of the images is not stated", where=COMMAND_LINE, fix="--size 256, or another")
    return _selected(registry("datasets").usable(name, where="dataset.name"), table, "dataset")


def component_of_words(kind: str, name: str, settings: Mapping[str, Any], table: str) -> Selected[Any]:
    """Return a component that the command line names, with the settings of its table."""
    return _selected(registry(kind).usable(name, where=COMMAND_LINE), settings, table)


def settings_in(words: Sequence[str], tables: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return the settings that KEY=VALUE words give to each of these tables. Raises SD-T943 for other keys."""
    merged = Merged(None)
    override(merged, words)
    known = [word for word in words if word.partition(".")[0].strip() in tables]
    if odd := [word for word in words if word not in known]:
        what, expect = f"only settings of {' and '.join(tables)} have an effect here", f"such as {tables[0]}.size=64"
        raise error(UNUSABLE, what, where=COMMAND_LINE, got=odd[0], expect=expect)
    found = {table: merged.tables.get(table, {}) for table in tables}
    if wrong := [table for table, value in found.items() if not isinstance(value, dict)]:
        raise error(UNUSABLE, f"{wrong[0]} is a table", where=COMMAND_LINE, expect=f"{wrong[0]}.KEY=VALUE")
    return found


def _selected(component: Component[Any], settings: Mapping[str, Any], table: str) -> Selected[Any]:
    given = {**settings, **absolute_paths(component.params, settings, Merged(None), table)}
    fix = f"sddit-run show {component.kind} {component.name}"
    params: Params = validated(component.params, given, table=table, where=COMMAND_LINE, fix=fix)
    return Selected(component, params)


def _included(name: str) -> Component[Any] | None:
    """Return the data set of that name if it needs no settings."""
    found = [one for one in registry("datasets") if name in (one.name, one.qualified)]
    if not found or any(field.is_required() for field in found[0].params.model_fields.values()):
        return None
    return registry("datasets").usable(name, where="SOURCE")


def _reader_of(source: Path, *, by_name: bool) -> str:
    """Return the name of the data set that reads a source."""
    components = list(registry("datasets"))
    names = [one.qualified for one in components if issubclass(one.params, DatasetParams) and one.params.reads(source)]
    if len(names) == 1:
        return names[0]
    if names:
        what, expect = "several data sets read this source", f"one of {', '.join(names)}"
        raise error(UNUSABLE, what, where=str(source), expect=expect, fix=f"dataset.name={names[0]}")
    included = [one.name for one in components if by_name and _included(one.name)]
    expect = EXPECTED + (f", or one of {', '.join(included)}" if included else "")
    if not source.exists():
        near = nearest(source.name, [*(path.name for path in source.parent.glob("*")), *included])
        hint = f"   (did you mean {near!r}?)" if near else ""
        raise error(UNUSABLE, "the source of images does not exist", where=str(source), expect=f"{expect}{hint}")
    raise error(UNUSABLE, "no data set reads this source", where=str(source), expect=expect)
