"""Find and load plugins. A broken plugin is listed as failed and affects no other command.

Built-in plugins are entry points of our own distribution in the group `sddit`, exactly as a third party's would be, and
are always loaded. A third-party plugin is listed from its metadata and imported only when a recipe names it; a one-file
plugin is imported only when a recipe gives its path.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from hashlib import sha256
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

import pluggy

from sddit.distributed.signals import Stopped
from sddit.errors import Problem, SdditError, describe_exception, error, expand_user, one_of, raise_all, real_path
from sddit.plugins import discovery, hookspecs, loading
from sddit.plugins.discovery import OURS, PluginInfo
from sddit.plugins.hookspecs import Registries
from sddit.plugins.registry import Registry

GROUP = "sddit"
CORE = Path(__file__).parents[1]


class Host:
    """The registries and the plugins that fill them.

    Args:
        builtins: which of our own plugins to load; None means all of them.
    """

    def __init__(self, builtins: Collection[str] | None = None) -> None:
        self.registries = Registries()
        self.rows: dict[str, PluginInfo] = {}
        self.announce: Callable[[str], None] = lambda text: None
        """Called with the path and hash of a one-file plugin before its import, and with plugins that import slowly."""
        self._entries: dict[str, EntryPoint] = {}
        self._manager = pluggy.PluginManager("sddit")
        self._manager.add_hookspecs(hookspecs)
        self._find()
        for name, row in self.rows.items():
            if row.builtin and (builtins is None or name in builtins):
                self._load_entry(name)

    def use(self, names: Iterable[str], folder: Path | None = None, *, where: str = "plugins") -> None:
        """Load the plugins a recipe names: an entry point's name, or `./file.py` next to the recipe.

        Raises SdditError with every unknown, forbidden or broken one.
        """
        problems: list[Problem] = []
        cause: BaseException | None = None
        for name in names:
            row = self._row_of_file(name, folder, where) if name.endswith(".py") else self._row_of_entry(name, where)
            if isinstance(row, Problem):
                problems.append(row)
            elif row.state == "failed":
                problems.append(loading.load_problem(row, where))
                cause = cause or row.failure
        if problems:
            raise SdditError(*problems) from cause

    def use_given(self, name: str, *, where: str) -> str:
        """Load a plugin that the user names outside of a recipe: a file in any folder, or an entry point's name.

        Returns its name.
        """
        path = real_path(Path(expand_user(name, where))) if name.endswith(".py") else None
        self.use([path.name if path else name], path.parent if path else None, where=where)
        return next(row.name for row in self.rows.values() if (row.file == str(path) if path else row.name == name))

    def load_everything(self) -> None:
        """Import every installed plugin under guard, for `plugins --load`."""
        for name, row in self.rows.items():
            if discovery.is_allowed(row):
                self._load_entry(name)
            else:
                row.state = "not allowed"

    def add(self, name: str, plugin: object) -> None:
        """Register a plugin that is already imported, as tests and notebooks do. Its errors are raised."""
        row = self.rows[name] = PluginInfo(name, "(added)", "")
        self._guarded(row, lambda: plugin)
        if row.failure is not None:
            del self.rows[name]
            raise row.failure

    def remove(self, name: str) -> None:
        """Remove a plugin that was added, or loaded from a file, and all it registered."""
        self._forget(self.rows.pop(name))

    def raise_for_builtins(self) -> None:
        """Raise if one of our own plugins did not load: a broken installation."""
        raise_all(loading.load_problem(row, "") for row in self.rows.values() if row.builtin and row.state == "failed")

    def owner_of(self, file: str) -> PluginInfo | None:
        """Return the third-party plugin that a source file belongs to."""
        owners = (row for row in self.rows.values() if row.code and not row.builtin)
        return next((row for row in owners if Path(file).is_relative_to(row.code)), None)

    def _find(self) -> None:
        """List every entry point, ours first. Names that two distributions share become `distribution:name`."""
        found = {(entry.dist.name if entry.dist else "?", entry.name): entry for entry in entry_points(group=GROUP)}
        names = [name for _, name in found]
        for (dist, short), entry in sorted(
            found.items(), key=lambda item: (item[0][0] != OURS, item[0][1], item[0][0])
        ):
            name = short if dist == OURS or names.count(short) == 1 else f"{dist}:{short}"
            self.rows[name] = PluginInfo(name, dist, entry.dist.version if entry.dist else "?")
            self._entries[name] = entry

    def _row_of_entry(self, name: str, where: str) -> PluginInfo | Problem:
        if name not in self.rows:
            return self._unknown(name, where)
        return self._load_entry(name) if discovery.is_allowed(self.rows[name]) else discovery.not_allowed(name)

    def _unknown(self, name: str, where: str) -> Problem:
        if candidates := [other for other in self.rows if other.endswith(f":{name}")]:
            return Problem(
                "SD-P203",
                f"two distributions offer a plugin named {name!r}",
                where=where,
                got=name,
                expect=one_of(name, candidates),
                fix="write the distribution before the name",
            )
        fix = f"pip install the package that brings {name!r}, or correct the name; a file is written './{name}.py'"
        if "/" in name or name.startswith("."):
            fix = f"a plugin's file ends in .py: './{Path(name).stem}.py'"
        return Problem(
            "SD-P205",
            f"no plugin named {name!r} is installed",
            where=where,
            got=name,
            expect=one_of(name, self.rows),
            fix=fix,
        )

    def _row_of_file(self, name: str, folder: Path | None, where: str) -> PluginInfo | Problem:
        root = real_path(folder or Path.cwd())
        path = real_path(root / name)
        row = PluginInfo(discovery.plugin_name(path), discovery.FILE, "", file=str(path))
        if not discovery.is_allowed(row):
            return discovery.not_allowed(name)
        if problem := discovery.location_problem(name, path, root, where):
            return problem
        source = path.read_bytes()
        row.digest = sha256(source).hexdigest()
        row.version = row.digest[:12]
        known = self.rows.get(row.name)
        if known is not None and known.digest == row.digest:
            return known  # the same code, perhaps as the copy in a run folder
        if known is not None and known.file != row.file:
            return Problem(
                "SD-P203", f"two plugins are named {row.name!r}", where=where, got=name, fix="rename the file"
            )
        if known is not None:  # the same file, edited since: a notebook's second try
            self.remove(row.name)
        self.announce(f"plugin {name}: {path}  sha256 {row.version}")
        self._guarded(row, lambda: loading.import_file(path, row.name, source))
        if row.state == "loaded":
            self.rows[row.name] = row
        return row

    def _load_entry(self, name: str) -> PluginInfo:
        row = self.rows[name]
        if row.state == "not loaded":
            self._guarded(row, self._entries[name].load)
        return row

    def _guarded(self, row: PluginInfo, load: Callable[[], object]) -> None:
        """Import a plugin and let it register. A failure, including `sys.exit`, is recorded in its row."""
        start = time.perf_counter()
        try:
            plugin = loading.import_guarded(row, load, self.announce)
            loading.check_hooks(plugin)
            self._manager.register(plugin, name=row.name)
            self._manager.check_pending()
            self._register(plugin, row)
            row.code = row.file or loading.code_folder(plugin)
            row.state = "loaded"
        except (Stopped, KeyboardInterrupt):  # a signal came meanwhile, which the plugin did not cause
            raise
        except BaseException as failure:
            row.state, row.failure = "failed", failure
            row.error = describe_exception(failure)
            row.where = loading.failing_line(failure)
            self._forget(row)
        row.seconds = time.perf_counter() - start

    def _register(self, plugin: object, row: PluginInfo) -> None:
        others = [p for p in self._manager.get_plugins() if p is not plugin]
        for kind, registry in self.registries.all().items():
            caller = self._manager.subset_hook_caller(f"register_{kind}", others)
            caller(registry=registry.bound_to(row.name))
            if names := [c.name for c in registry if c.origin == row.name]:
                row.registers[kind] = names
        if not row.registers:
            raise TypeError(
                "it registers nothing; a plugin has at least one @hookimpl function such as register_losses"
            )

    def _forget(self, row: PluginInfo) -> None:
        """Remove everything a plugin registered."""
        row.registers = {}
        if self._manager.has_plugin(row.name):
            self._manager.unregister(name=row.name)
        for registry in self.registries.all().values():
            registry.drop(row.name)


_current: list[Host] = []


def host() -> Host:
    """Return the host of this process, with the built-in plugins loaded."""
    if not _current:
        _current.append(Host())
    return _current[-1]


def third_party() -> list[str]:
    """Return the names of the third-party plugins that are loaded. Loads none. The toys of our tests are ours."""
    rows = _current[-1].rows.values() if _current else ()
    others = (row for row in rows if row.state == "loaded" and row.code and not row.builtin)
    return [row.name for row in others if not Path(row.code).is_relative_to(CORE)]


@contextlib.contextmanager
def using_host(other: Host) -> Iterator[Host]:
    """Replace `host()` inside the block, as tests and tools that compare installations do."""
    _current.append(other)
    try:
        yield other
    finally:
        _current.remove(other)


def registry(kind: str) -> Registry[Any]:
    """Return the registry of one kind: `losses`, `backbones`, ... Raises SdditError for an unknown kind."""
    registries = host().registries.all()
    if kind not in registries:
        raise error("SD-R111", f"no registry named {kind!r}", where=kind, expect=one_of(kind, registries))
    return registries[kind]
