"""Find plugins: entry points, one-file plugins, and the allow-list."""

from __future__ import annotations

import importlib.abc
import importlib.util
import os
import re
import sys
import sysconfig
import traceback
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Literal

from sddit.errors import Problem, nearest, one_of
from sddit.plugins import hookspecs

OURS = "sddit"
FILE = "(file)"


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
    ours, python = str(Path(__file__).parents[1]), sysconfig.get_path("stdlib")
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
