"""Find and load plugins. One bad plugin stays in its own row and harms no other command.

Built-in plugins are entry points of our own distribution in the group `sddit`, exactly as a third party's would be, and are
always loaded. A third-party plugin is listed from its metadata and imported only when a recipe names it; a one-file
plugin is imported only when a recipe gives its path.
"""

from __future__ import annotations

import importlib.util
import os
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from hashlib import sha256
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType

import pluggy

from sddit import hookspecs
from sddit.errors import Problem, SdditError, error, one_of
from sddit.hookspecs import Registries
from sddit.registry import Registry

GROUP = "sddit"
OURS = "sddit"


@dataclass(slots=True)
class Row:
    """One plugin as `sddit-run plugins` lists it."""

    name: str
    distribution: str
    version: str
    state: str = "not loaded"  # not loaded | loaded | failed
    error: str = ""
    registers: dict[str, list[str]] = field(default_factory=dict)  # kind -> component names
    file: str = ""  # path of a one-file plugin
    digest: str = ""  # sha256 of a one-file plugin

    @property
    def builtin(self) -> bool:
        return self.distribution == OURS


class Host:
    """The registries and the plugins that fill them."""

    def __init__(self) -> None:
        self.registries = Registries()
        self.rows: dict[str, Row] = {}
        self._entries: dict[str, EntryPoint] = {}
        self._manager = pluggy.PluginManager("sddit")
        self._manager.add_hookspecs(hookspecs)
        self._find()
        for name, row in self.rows.items():
            if row.builtin:
                self._load_entry(name)

    def _find(self) -> None:
        """A row for every entry point, ours first. Twins of one name are listed as `distribution:name`."""
        found = [(entry.dist.name if entry.dist else "?", entry) for entry in entry_points(group=GROUP)]
        found = list({(dist, entry.name): (dist, entry) for dist, entry in found}.values())
        found.sort(key=lambda item: (item[0] != OURS, item[1].name, item[0]))
        names = [entry.name for _, entry in found]
        for dist, entry in found:
            name = entry.name if dist == OURS or names.count(entry.name) == 1 else f"{dist}:{entry.name}"
            self.rows[name] = Row(name, dist, entry.dist.version if entry.dist else "?")
            self._entries[name] = entry

    def use(self, names: Iterable[str], folder: Path | None = None) -> None:
        """Load the third-party plugins a recipe names: an entry point's name, or `./file.py` beside the recipe.

        Raises SdditError for an unknown, forbidden or broken one.
        """
        for name in names:
            if name.endswith(".py"):
                self._use_file(name, folder)
            else:
                self._use_entry(name)

    def load_everything(self) -> None:
        """Import every installed plugin under guard, for `plugins --load`."""
        for name in self._entries:
            self._load_entry(name)

    def _use_entry(self, name: str) -> None:
        if name not in self.rows:
            twins = [other for other in self.rows if other.endswith(f":{name}")]
            if twins:
                raise error(
                    "SD-P203", f"two distributions offer a plugin named {name!r}", got=name, expect=one_of(name, twins)
                )
            raise error(
                "SD-P205",
                f"no plugin named {name!r} is installed",
                where="plugins",
                got=name,
                expect=one_of(name, self.rows),
                fix=f"pip install the package that brings {name!r}, or mend the name",
            )
        self._refuse_unlisted(name)
        row = self._load_entry(name)
        if row.state == "failed":
            what = f"plugin {name!r} ({row.distribution} {row.version}) failed to load"
            raise error("SD-P201", what, where="plugins", got=row.error, fix="mend or update the plugin")

    def _refuse_unlisted(self, name: str) -> None:
        """SDDIT_PLUGINS=a,b limits third-party and one-file plugins; empty means none."""
        allowed = os.environ.get("SDDIT_PLUGINS")
        if allowed is None or self.rows.get(name, Row(name, "", "")).builtin:
            return
        names = [part.strip() for part in allowed.split(",") if part.strip()]
        if name not in names:
            raise error(
                "SD-P206",
                f"plugin {name!r} is not allowed here",
                where="environment SDDIT_PLUGINS",
                got=allowed or "(empty)",
                expect=f"a list with {name}",
                fix=f"SDDIT_PLUGINS={','.join([*names, name])}",
            )

    def _use_file(self, name: str, folder: Path | None) -> None:
        self._refuse_unlisted(name)
        root = (folder or Path.cwd()).resolve()
        path = (root / name).resolve()
        if not path.is_relative_to(root):
            raise error(
                "SD-R130",
                "a one-file plugin lies inside the recipe's folder",
                where="plugins",
                got=name,
                expect=f"a file in {root}",
            )
        if not path.is_file():
            nearby = [f"./{p.name}" for p in root.glob("*.py")]
            raise error(
                "SD-P207",
                f"no plugin file {name!r}",
                where="plugins",
                got=str(path),
                expect=one_of(name, nearby) if nearby else "a file beside the recipe",
            )
        digest = sha256(path.read_bytes()).hexdigest()
        plugin = plugin_name(path)
        if plugin in self.rows and self.rows[plugin].digest == digest:
            return
        if plugin in self.rows:
            raise error(
                "SD-P203", f"two plugins are named {plugin!r}", where="plugins", got=name, fix="rename the file"
            )
        row = self.rows[plugin] = Row(plugin, "(file)", digest[:12], file=str(path), digest=digest)
        self._guarded(row, lambda: _import_file(path, plugin))
        if row.state == "failed":
            del self.rows[plugin]
            raise error(
                "SD-P201",
                f"plugin {name} failed to load",
                where=str(path),
                got=row.error,
                fix="mend the plugin; --debug shows the traceback",
            )

    def _load_entry(self, name: str) -> Row:
        row = self.rows[name]
        if row.state == "not loaded":
            self._guarded(row, self._entries[name].load)
        return row

    def _guarded(self, row: Row, load: object) -> None:
        """Import a plugin and let it register. A failure, `sys.exit` included, stays in its row."""
        try:
            plugin = load()  # type: ignore[operator]
            self._manager.register(plugin, name=row.name)
            self._manager.check_pending()  # a misspelt hook is an error, not silence
            refuse_misspelt_hooks(plugin)
            self._register(plugin, row)
        except (Exception, SystemExit) as failure:
            row.state, row.error = "failed", f"{type(failure).__name__}: {failure}"
            row.registers = {}
            if self._manager.has_plugin(row.name):
                self._manager.unregister(name=row.name)
            for registry in self.registries.all().values():
                registry.drop(row.name)
            return
        row.state = "loaded"

    def _register(self, plugin: object, row: Row) -> None:
        others = [p for p in self._manager.get_plugins() if p is not plugin]
        for kind, registry in self.registries.all().items():
            before = len(list(registry))
            caller = self._manager.subset_hook_caller(f"register_{kind}", others)
            caller(registry=registry.speaking(row.name))
            if len(list(registry)) > before:
                row.registers[kind] = [c.name for c in registry if c.origin == row.name]
        if not row.registers:
            raise TypeError(
                "it registers nothing; a plugin has at least one @hookimpl function such as register_losses"
            )


def refuse_misspelt_hooks(plugin: object) -> None:
    """A function that looks like a hook but carries no `@hookimpl`, or an unknown name, is a mistake: say which."""
    known = [name for name in vars(hookspecs) if name.startswith("register_")]
    for name, value in vars(plugin).items():
        if not (name.startswith("register_") and callable(value)):
            continue
        if name not in known:
            raise TypeError(f"unknown hook {name!r}; expected {one_of(name, known)}")
        if not hasattr(value, "sddit_impl"):
            raise TypeError(f"{name} lacks the @hookimpl decorator (from sddit import hookimpl)")


def plugin_name(path: Path) -> str:
    """The name under which a one-file plugin's components are qualified."""
    return re.sub(r"\W", "_", path.stem)


def _import_file(path: Path, name: str) -> ModuleType:
    module_name = f"sddit_file_{name}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"cannot import {path}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[module_name]
        raise
    return module


@cache
def host() -> Host:
    """The process's host, with the built-in plugins loaded."""
    return Host()


def registry(kind: str) -> Registry[object]:
    """The registry of one kind: `losses`, `backbones`, ... Raises SdditError for an unknown kind."""
    registries = host().registries.all()
    if kind not in registries:
        raise error("SD-R111", f"no registry named {kind!r}", got=kind, expect=one_of(kind, registries))
    return registries[kind]


def failed_builtins(rows: Sequence[Row]) -> list[Problem]:
    """Built-in plugins that did not load: an installation fault."""
    return [
        Problem("SD-P201", f"built-in plugin {row.name!r} failed to load", got=row.error)
        for row in rows
        if row.builtin and row.state == "failed"
    ]


def refuse_broken_installation() -> None:
    """Raise if a built-in plugin did not load."""
    if problems := failed_builtins(list(host().rows.values())):
        raise SdditError(*problems)
