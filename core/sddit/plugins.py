"""Find and load plugins. One bad plugin stays in its own row and harms no other command.

Built-in plugins are entry points of our own distribution in the group `sddit`, exactly as a third party's would be, and are
always loaded. A third-party plugin is listed from its metadata and imported only when a recipe names it; a one-file
plugin is imported only when a recipe gives its path.
"""

from __future__ import annotations

import contextlib
import importlib.abc
import importlib.util
import os
import re
import sys
import sysconfig
import threading
import time
import traceback
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import pluggy

from sddit import hookspecs
from sddit.errors import Problem, error, nearest, one_of, raise_all
from sddit.hookspecs import Registries
from sddit.registry import Registry
from sddit.shared_state import unchanged_shared_state
from sddit.training.signals import Stopped

GROUP = "sddit"
OURS = "sddit"
FILE = "(file)"
PATIENCE = 30.0
"""Seconds after which a person is told which plugin is still being imported."""


@dataclass(slots=True)
class Row:
    """One plugin as `sddit-run plugins` lists it."""

    name: str
    distribution: str
    version: str
    state: Literal["not loaded", "loaded", "failed", "not allowed"] = "not loaded"
    error: str = ""
    where: str = ""  # the line of the plugin at which it failed
    registers: dict[str, list[str]] = field(default_factory=dict)  # kind -> component names
    seconds: float = 0.0  # spent importing it
    file: str = ""  # path of a one-file plugin
    code: str = ""  # the file or folder that holds its code, once loaded
    digest: str = ""  # sha256 of a one-file plugin
    failure: BaseException | None = field(default=None, repr=False)

    @property
    def builtin(self) -> bool:
        return self.distribution == OURS

    @property
    def identity(self) -> str:
        """What a run id hashes of this plugin: the file's bytes, or distribution and version."""
        return self.digest or f"{self.distribution} {self.version}"


class Host:
    """The registries and the plugins that fill them.

    Args:
        builtins: which of our own plugins to load; None means all of them.
    """

    def __init__(self, builtins: Collection[str] | None = None) -> None:
        self.registries = Registries()
        self.rows: dict[str, Row] = {}
        self.announce: Callable[[str], None] = lambda text: None
        """Told the path and hash of a one-file plugin before it is imported, and of one that is slow to import."""
        self._entries: dict[str, EntryPoint] = {}
        self._manager = pluggy.PluginManager("sddit")
        self._manager.add_hookspecs(hookspecs)
        self._find()
        for name, row in self.rows.items():
            if row.builtin and (builtins is None or name in builtins):
                self._load_entry(name)

    def use(self, names: Iterable[str], folder: Path | None = None, *, where: str = "plugins") -> None:
        """Load the plugins a recipe names: an entry point's name, or `./file.py` beside the recipe.

        Raises SdditError with every unknown, forbidden or broken one.
        """
        problems: list[Problem] = []
        causes: list[BaseException] = []
        for name in names:
            row = self._row_of_file(name, folder, where) if name.endswith(".py") else self._row_of_entry(name, where)
            if isinstance(row, Problem):
                problems.append(row)
            elif row.state == "failed":
                problems.append(_load_problem(row, where))
                causes += [row.failure] if row.failure else []
        try:
            raise_all(problems)
        except Exception as failed:
            raise failed from (causes[0] if causes else None)

    def load_everything(self) -> None:
        """Import every installed plugin under guard, for `plugins --load`."""
        for name, row in self.rows.items():
            if _allowed(row):
                self._load_entry(name)
            else:
                row.state = "not allowed"

    def add(self, name: str, plugin: object) -> None:
        """Register a plugin that is already imported, as tests and notebooks do. What is wrong with it is raised."""
        row = self.rows[name] = Row(name, "(added)", "")
        self._guarded(row, lambda: plugin)
        if row.failure is not None:
            del self.rows[name]
            raise row.failure

    def remove(self, name: str) -> None:
        """Take back a plugin that was added, or loaded from a file, and all it registered."""
        self._forget(self.rows.pop(name))

    def raise_for_builtins(self) -> None:
        """Raise if one of our own plugins did not load: an installation fault."""
        raise_all(_load_problem(row, "") for row in self.rows.values() if row.builtin and row.state == "failed")

    def owner_of(self, file: str) -> Row | None:
        """The third-party plugin whose code a source file is."""
        owners = (row for row in self.rows.values() if row.code and not row.builtin)
        return next((row for row in owners if Path(file).is_relative_to(row.code)), None)

    def _find(self) -> None:
        """A row for every entry point, ours first. Twins of one name are listed as `distribution:name`."""
        found = {(entry.dist.name if entry.dist else "?", entry.name): entry for entry in entry_points(group=GROUP)}
        names = [name for _, name in found]
        for (dist, short), entry in sorted(
            found.items(), key=lambda item: (item[0][0] != OURS, item[0][1], item[0][0])
        ):
            name = short if dist == OURS or names.count(short) == 1 else f"{dist}:{short}"
            self.rows[name] = Row(name, dist, entry.dist.version if entry.dist else "?")
            self._entries[name] = entry

    def _row_of_entry(self, name: str, where: str) -> Row | Problem:
        if name not in self.rows:
            return self._unknown(name, where)
        row = self.rows[name]
        return self._load_entry(name) if _allowed(row) else _not_allowed(name)

    def _unknown(self, name: str, where: str) -> Problem:
        if twins := [other for other in self.rows if other.endswith(f":{name}")]:
            return Problem(
                "SD-P203",
                f"two distributions offer a plugin named {name!r}",
                where=where,
                got=name,
                expect=one_of(name, twins),
                fix="write the distribution before the name",
            )
        fix = f"pip install the package that brings {name!r}, or mend the name; a file is written './{name}.py'"
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

    def _row_of_file(self, name: str, folder: Path | None, where: str) -> Row | Problem:
        root = (folder or Path.cwd()).resolve()
        path = (root / name).resolve()
        row = Row(plugin_name(path), FILE, "", file=str(path))
        if not _allowed(row):
            return _not_allowed(name)
        if problem := _misplaced(name, path, root, where):
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
        self._guarded(row, lambda: _import_file(path, row.name, source))
        if row.state == "loaded":
            self.rows[row.name] = row
        return row

    def _load_entry(self, name: str) -> Row:
        row = self.rows[name]
        if row.state == "not loaded":
            self._guarded(row, self._entries[name].load)
        return row

    def _guarded(self, row: Row, load: Callable[[], object]) -> None:
        """Import a plugin and let it register. A failure, `sys.exit` included, stays in its row."""
        start = time.perf_counter()
        try:
            plugin = self._imported(row, load)
            refuse_misspelt_hooks(plugin)
            self._manager.register(plugin, name=row.name)
            self._manager.check_pending()
            self._register(plugin, row)
            row.code = row.file or _folder_of(plugin)
            row.state = "loaded"
        except (Stopped, KeyboardInterrupt):  # a signal came meanwhile, which is no fault of the plugin
            raise
        except BaseException as failure:
            row.state, row.failure = "failed", failure
            row.error = said(failure)
            row.where = _last_line(failure)
            self._forget(row)
        row.seconds = time.perf_counter() - start

    def _imported(self, row: Row, load: Callable[[], object]) -> object:
        """Import a plugin. A third party's may not print into our output, nor change what all code shares."""
        if row.builtin:
            return load()
        slow = threading.Timer(PATIENCE, self.announce, [f"plugin {row.name}: still being imported"])
        slow.daemon = True
        slow.start()
        try:
            with contextlib.redirect_stdout(sys.stderr), unchanged_shared_state():
                return load()
        finally:
            slow.cancel()

    def _register(self, plugin: object, row: Row) -> None:
        others = [p for p in self._manager.get_plugins() if p is not plugin]
        for kind, registry in self.registries.all().items():
            caller = self._manager.subset_hook_caller(f"register_{kind}", others)
            caller(registry=registry.speaking(row.name))
            if names := [c.name for c in registry if c.origin == row.name]:
                row.registers[kind] = names
        if not row.registers:
            raise TypeError(
                "it registers nothing; a plugin has at least one @hookimpl function such as register_losses"
            )

    def _forget(self, row: Row) -> None:
        """Leave nothing of a plugin behind."""
        row.registers = {}
        if self._manager.has_plugin(row.name):
            self._manager.unregister(name=row.name)
        for registry in self.registries.all().values():
            registry.drop(row.name)


def refuse_misspelt_hooks(plugin: object) -> None:
    """A function that looks like a hook but carries no `@hookimpl`, or an unknown name, is a mistake: say which."""
    known = [name for name in vars(hookspecs) if name.startswith("register_")]
    for name in dir(plugin):
        value = getattr(plugin, name, None)
        marked = callable(value) and hasattr(value, "sddit_impl")
        if not marked and not (name.startswith("register_") and callable(value)):
            continue
        if name not in known:
            close = nearest(name, known)
            raise TypeError(
                f"unknown hook {name!r}; "
                + (f"did you mean {close!r}?" if close else f"expected {one_of(name, known)}")
            )
        if not marked:
            raise TypeError(f"{name} lacks the @hookimpl decorator (from sddit import hookimpl)")


def said(failure: BaseException, most: int = 240) -> str:
    """What an exception says, on one line of bounded length."""
    try:
        words = str(failure)
    except Exception:
        words = "(what it says cannot be had: its __str__ fails)"
    text = " ".join(f"{type(failure).__name__}: {words}".split()).rstrip(": ")
    return text if len(text) <= most else f"{text[:most]} ..."


def plugin_name(path: Path) -> str:
    """The name under which a one-file plugin's components are qualified."""
    return re.sub(r"\W", "_", path.stem)


def plugins_named_by(names: Iterable[str]) -> tuple[str, ...]:
    """The plugins that qualified component names ask for: `acme/masked` asks for `acme`."""
    return tuple(dict.fromkeys(name.rpartition("/")[0] for name in names if "/" in name))


_current: list[Host] = []


def host() -> Host:
    """The process's host, with the built-in plugins loaded."""
    if not _current:
        _current.append(Host())
    return _current[-1]


@contextlib.contextmanager
def using_host(other: Host) -> Iterator[Host]:
    """Let `host()` be another one for a while: tests, and tools that compare installations."""
    _current.append(other)
    try:
        yield other
    finally:
        _current.remove(other)


def registry(kind: str) -> Registry[Any]:
    """The registry of one kind: `losses`, `backbones`, ... Raises SdditError for an unknown kind."""
    registries = host().registries.all()
    if kind not in registries:
        raise error("SD-R111", f"no registry named {kind!r}", where=kind, expect=one_of(kind, registries))
    return registries[kind]


def _allowed(row: Row) -> bool:
    """SDDIT_PLUGINS=a,b limits third-party and one-file plugins; empty means none."""
    limit = os.environ.get("SDDIT_PLUGINS")
    if limit is None or row.builtin:
        return True
    names = {part.strip() for part in limit.split(",")}
    return bool(names & {row.name, Path(row.file).name if row.file else row.name})


def _not_allowed(name: str) -> Problem:
    limit = os.environ.get("SDDIT_PLUGINS", "")
    short = Path(name).name
    return Problem(
        "SD-P206",
        f"plugin {name!r} is not allowed here",
        where="environment SDDIT_PLUGINS",
        got=limit or "(empty)",
        expect=f"a list with {short}",
        fix=f"SDDIT_PLUGINS={','.join([*filter(None, [limit]), short])}",
    )


def _misplaced(name: str, path: Path, root: Path, where: str) -> Problem | None:
    """What is wrong with the place of a one-file plugin: code comes only from the recipe's own folder."""
    if not path.is_relative_to(root):
        return Problem(
            "SD-R130",
            "a one-file plugin lies inside the recipe's folder",
            where=where,
            got=name,
            expect=f"a file in {root}",
            fix="copy the file beside the recipe",
        )
    if not path.is_file():
        nearby = [f"./{found.name}" for found in root.glob("*.py") if found.is_file()]
        return Problem(
            "SD-P207",
            f"no plugin file {name!r}",
            where=where,
            got=f"{path} (a folder)" if path.is_dir() else str(path),
            expect=one_of(name, nearby) if nearby else "a file beside the recipe",
        )
    return None


def _load_problem(row: Row, where: str) -> Problem:
    kind = "built-in plugin" if row.builtin else "plugin"
    source = row.file or f"{row.distribution} {row.version}"
    fix = "install sddit again" if row.builtin else "mend the plugin; --debug shows the traceback"
    return Problem(
        "SD-P201",
        f"{kind} {row.name!r} failed to load",
        where=row.where or row.file or where,
        got=row.error,
        expect="" if row.file else f"{source} to load",
        fix=fix,
    )


def _folder_of(plugin: object) -> str:
    """Where a package's code lies; of a single module, its file."""
    file = Path(getattr(plugin, "__file__", None) or "")
    return str(file.parent if file.name == "__init__.py" else file) if file.name else ""


def _last_line(failure: BaseException) -> str:
    """`file:line` of the innermost frame that is the plugin's own rather than ours or a library's."""
    if isinstance(failure, SyntaxError) and failure.filename:
        return f"{failure.filename}:{failure.lineno}"
    frames = traceback.extract_tb(failure.__traceback__)
    ours, python = str(Path(__file__).parent), sysconfig.get_path("stdlib")
    own = [
        f for f in frames if not f.filename.startswith(("<frozen", ours, python)) and "site-packages" not in f.filename
    ]
    return f"{own[-1].filename}:{own[-1].lineno}" if own else ""


class _Bytes(importlib.abc.ExecutionLoader):
    """Imports exactly the bytes that were hashed; a stale cache beside the file plays no part."""

    def __init__(self, path: Path, source: bytes) -> None:
        self.path, self.source = path, source

    def get_filename(self, fullname: str) -> str:
        return str(self.path)

    def get_source(self, fullname: str) -> str:
        return importlib.util.decode_source(self.source)


def _import_file(path: Path, name: str, source: bytes) -> ModuleType:
    module_name = f"sddit_file_{name}"
    spec = importlib.util.spec_from_file_location(module_name, path, loader=_Bytes(path, source))
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
