"""Merge the layers of a recipe: parents, the file, the command line. Each value keeps its origin."""

from __future__ import annotations

import copy
import os
import re
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sddit.errors import Problem, error, expand_user, expand_variable, raise_all
from sddit.recipes.parsing import Source, odd_values, parse_value, quoted, read, shown
from sddit.recipes.search import find, name_of, refuse_broken_link, shipped, to_extend

MAX_CHAIN = 16
COMMAND_LINE = "command line"


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a value was set."""

    place: str
    inherited: bool = False  # from a parent, from a file under a command line, or from a resolved recipe
    folder: Path = Path()  # what a path is relative to: the folder of the file, or the current one for the command line


@dataclass(frozen=True, slots=True)
class Plugin:
    """A plugin as a recipe names it. A one-file plugin is in the folder of the recipe."""

    name: str
    folder: Path
    where: str

    @property
    def is_file(self) -> bool:
        return self.name.endswith(".py")

    @property
    def path(self) -> Path:
        """Path of a one-file plugin."""
        return self.folder / self.name

    @property
    def resolved_name(self) -> str:
        """The name in a resolved recipe, which has one-file plugins next to it."""
        return f"./{self.path.name}" if self.is_file else self.name


@dataclass(slots=True)
class Merged:
    """A recipe as one table, unchecked but for its text."""

    path: Path | None
    resolved: bool = False  # whether this is the resolved form, which states every key
    tables: dict[str, Any] = field(default_factory=dict)
    origins: dict[str, Origin] = field(default_factory=dict)  # of every table and value, by dotted key
    plugins: list[Plugin] = field(default_factory=list)
    overrides: tuple[str, ...] = ()  # of the command line, as typed
    planned: bool = False  # only a plan is made: facts of data that do not exist may be declared

    @property
    def command(self) -> str:
        """The command line of this recipe, including overrides."""
        name = name_of(self.path) if self.path else "RECIPE"
        return shlex.join(["sddit-run", name, *self.overrides])

    def typed(self, key: str) -> str:
        """Return the value of an override of `key` as it was typed; empty if the command line does not set it."""
        values = (text.partition("=") for text in reversed(self.overrides))
        is_typed = key in self.origins and self.origins[key].place == COMMAND_LINE
        return next((value.strip() for name, _, value in values if is_typed and name.strip() == key), "")

    def place(self, key: str) -> str:
        """Return where `key` was set, or the nearest table around it."""
        while key and key not in self.origins:
            key = key.rpartition(".")[0]
        return self.origins[key].place if key else shown(self.path) if self.path else ""

    def absolute(self, key: str, path: str) -> str:
        """Return the absolute form of the path set for `key`, which is relative to the file that sets it.

        It may begin with `~`, or with an environment variable, `$NAME/`.
        """
        origin = self.origins.get(key)
        folder = origin.folder if origin else Path()
        where = f"{self.place(key)} ({key})"
        return os.path.normpath((folder / expand_user(expand_variable(path, where), where)).absolute())


def load(source: str | Path, overrides: Sequence[str] = ()) -> Merged:
    """Read a recipe with its parents and apply `key=value` overrides.

    Raises SdditError for what is wrong with either.
    """
    path = find(source)
    return stacked(path, chain(path), overrides)


def stacked(path: Path, layers: Sequence[Source], overrides: Sequence[str]) -> Merged:
    """Return the recipe at `path`, merged from files, the oldest first, and overrides."""
    merged = Merged(path, resolved=path.suffix == ".json", overrides=tuple(overrides))
    for layer in layers:
        inherited = layer.path != path or merged.resolved or bool(overrides)  # a command line makes a file its parent
        if layer is not layers[-1]:
            layer.tables.pop("about", None)  # it describes the parent alone
        _add_file(merged, layer, path.parent, inherited)
    override(merged, overrides)
    return merged


def of_tables(
    tables: Mapping[str, Any],
    path: Path | None,
    places: Mapping[str, str] = {},
    plugin_files: Mapping[str, Path] = {},
) -> Merged:
    """Return the tables of a resolved recipe as layers, to be changed.

    Args:
        path: the file that stores them; None: no file.
        places: where values were set, by dotted key; by default in this file.
        plugin_files: the one-file plugins, by name; by default they are next to this file.
    """
    where, folder = (shown(path), path.parent) if path else ("", Path.cwd())
    raise_all(odd_values(tables, lambda key: where))
    merged = Merged(path, resolved=True)
    for plugin in _plugins(tables.get("plugins", []), folder, where):
        file = plugin_files.get(plugin.name)
        merged.plugins.append(Plugin(file.name, file.parent, where) if file else plugin)
    own = {key: value for key, value in tables.items() if key != "plugins"}
    merge_into(merged, own, lambda key: Origin(places.get(key, where), inherited=True, folder=folder))
    return merged


def chain(path: Path, where: str = "") -> list[Source]:
    """Return the file, which is requested at `where`, and all that it extends, the oldest first.

    Raises SdditError (SD-R120, SD-R121) for a cycle or a missing one.
    """
    sources: list[Source] = []
    parent: Any = path.name
    while True:
        if not path.is_file():
            refuse_broken_link(path, where)
            expect, fix = to_extend(str(parent), sources[-1].path if sources else path)
            what, got = f"no recipe {str(parent)!r} to extend", "a folder" if path.is_dir() else "no such file"
            raise error("SD-R121", what, where=where, got=got, expect=expect, fix=fix)
        files = [source.path.resolve() for source in sources]
        if path.resolve() in files:
            names = [p.name for p in (*files[files.index(path.resolve()) :], path)]
            raise error("SD-R120", f"inheritance cycle: {' -> '.join(names)}", where=where, fix="remove one `extends`")
        if len(sources) == MAX_CHAIN:
            what = f"more than {MAX_CHAIN} recipes extend each other"
            raise error("SD-R120", what, where=where, fix="merge them into fewer files")
        source = read(path)
        sources.append(source)
        parent = source.tables.pop("extends", None)
        if parent is None:
            return sources[::-1]
        where = source.place("extends")
        path = parent_of(path.parent, parent, where)


def parent_of(folder: Path, parent: Any, where: str) -> Path:
    """Return the file that `extends` names in a folder: `base/x.toml` there, or `quickstart`, a shipped recipe by its
    name.
    """
    if isinstance(parent, str) and re.fullmatch(r"[\w-]+(/[\w-]+)*", parent):
        return shipped() / f"{parent}.toml"
    if not isinstance(parent, str) or not parent.endswith(".toml") or Path(parent).is_absolute():
        got = f"extends = {quoted(parent)}"
        expect = "the path of one .toml file, relative to this one, or the name of a shipped recipe"
        raise error("SD-R103", "'extends' is of the wrong kind", where=where, got=got, expect=expect)
    return folder / parent


def _add_file(merged: Merged, layer: Source, home: Path, inherited: bool) -> None:
    """Merge a file, and add the plugins that it names; a child cannot remove what its parent needs."""
    where = layer.place("plugins")
    inner, outer = layer.path.parent.resolve(), home.resolve()
    is_related = inner.is_relative_to(outer) or outer.is_relative_to(inner)  # as `recipes/` and `recipes/ablations/`
    for plugin in _plugins(layer.tables.pop("plugins", []), layer.path.parent, where):
        if plugin.is_file and not is_related:
            raise error(
                "SD-R130",
                "a recipe outside this folder names code",
                where=where,
                got=plugin.name,
                expect=f"a file that is named by a recipe in {shown(home)}",
                fix=f"copy {plugin.name} next to your recipe and name it there",
            )
        if plugin not in merged.plugins:
            merged.plugins.append(plugin)
    merge_into(merged, layer.tables, lambda key: Origin(layer.place(key), inherited, layer.path.parent))


def _plugins(value: Any, folder: Path, where: str) -> list[Plugin]:
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        what, got, fix = (
            "'plugins' is of the wrong kind",
            f"plugins = {quoted(value)}",
            'plugins = ["acme", "./my_loss.py"]',
        )
        raise error("SD-R103", what, where=where, got=got, expect="list of text", fix=fix)
    return [Plugin(name, folder, where) for name in value]


def merge_into(merged: Merged, over: Mapping[str, Any], origin: Origin | Callable[[str], Origin]) -> None:
    """Merge a table, of one origin or with one for each dotted key, into the recipe.

    Tables are merged key by key. Replaced entirely: lists, a table whose `name` changes (its other keys belong to
    another component), and a value schedule that sets start and end. `false` in place of a table removes it.
    """

    def merge(base: dict[str, Any], over: Mapping[str, Any], prefix: str) -> None:
        for key, new in over.items():
            dotted, old = f"{prefix}{key}", base.get(key)
            merges = isinstance(old, dict) and isinstance(new, Mapping) and not _replaces(new, old)
            if not merges and key in base:
                for gone in [k for k in merged.origins if k == dotted or k.startswith(f"{dotted}.")]:
                    del merged.origins[gone]
            if isinstance(old, dict) and new is False:
                del base[key]
                continue
            merged.origins[dotted] = origin if isinstance(origin, Origin) else origin(dotted)
            if isinstance(new, Mapping):
                base[key] = old if merges else {}
                merge(base[key], new, f"{dotted}.")
            else:
                base[key] = copy.deepcopy(new)

    merge(merged.tables, over, "")


def _replaces(new: Mapping[str, Any], old: Mapping[str, Any]) -> bool:
    renamed = "name" in new and "name" in old and not _same_component(new["name"], old["name"])
    return renamed or {"start", "end"} <= new.keys()


def _same_component(one: Any, other: Any) -> bool:
    """Return whether two names are the same component: `masked` is `acme/masked`, and `acme/masked` is not
    `other/masked`.
    """
    if not (isinstance(one, str) and isinstance(other, str)):
        return bool(one == other)
    is_bare = "/" not in one or "/" not in other
    return one == other or (is_bare and one.rpartition("/")[2] == other.rpartition("/")[2])


def leaves(value: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    """Yield (dotted key, value) of each value in a table and its sub-tables; an empty table counts as a value."""
    for key, inner in value.items():
        if isinstance(inner, Mapping) and inner:
            yield from leaves(inner, (*path, key))
        else:
            yield ".".join((*path, key)), inner


@dataclass(frozen=True, slots=True, eq=False)
class Override:
    """One `key=value`."""

    text: str
    path: tuple[str, ...]
    value: Any
    table: dict[str, Any]  # to merge into the recipe


def parse_override(text: str) -> Override:
    """`loss.denoise.weight=0.5`. The value is read as TOML, else it is text. Raises SdditError (SD-R133 and others)."""
    key, equals, value = text.partition("=")
    key = key.strip()
    if not equals or not re.fullmatch(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+){0,15}", key):
        what = "an override is key=value"
        raise error("SD-R133", what, where=COMMAND_LINE, got=text, expect="such as train.steps=200")
    if key == "extends":
        what = "`extends` cannot be set on the command line"
        raise error("SD-R133", what, where=COMMAND_LINE, got=text, fix="write it into a recipe")
    path = tuple(key.split("."))
    parsed = parse_value(value.strip(), COMMAND_LINE)
    table = {path[-1]: parsed}
    for name in reversed(path[:-1]):
        table = {name: table}
    raise_all(odd_values(table, lambda key: COMMAND_LINE))
    return Override(text, path, parsed, table)


def override(merged: Merged, texts: Sequence[str]) -> None:
    """Apply overrides from left to right, but each `name` first: its order cannot drop another override.

    Raises SdditError with every override that cannot be read (SD-R133) and every one without effect (SD-R134).
    """
    overrides = [parse_override(text) for text in texts]
    for plugins in [o for o in overrides if o.path == ("plugins",)]:
        overrides.remove(plugins)
        merged.plugins += _plugins(plugins.value, Path.cwd(), COMMAND_LINE)
    origins = {o: Origin(COMMAND_LINE) for o in overrides}
    removals = []
    for o in sorted(overrides, key=lambda o: (0, len(o.path)) if o.path[-1] == "name" else (1, 0)):
        if o.value is False and isinstance(setting_at(merged.tables, o.path), dict):
            removals.append(o)
        merge_into(merged, o.table, origins[o])
    found = {id(origin) for origin in merged.origins.values()}
    raise_all(
        Problem("SD-R134", "an override has no effect", COMMAND_LINE, o.text, "one override of a key", "remove it")
        for o in overrides
        if (setting_at(merged.tables, o.path) is not None if o in removals else id(origins[o]) not in found)
    )


def setting_at(tables: Mapping[str, Any], path: Sequence[str]) -> Any:
    """Return the value at a path of keys; None if it is missing."""
    value: Any = tables
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value
