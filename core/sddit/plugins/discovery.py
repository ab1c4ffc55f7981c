"""Describe plugins, check the location of one-file plugins, and apply the allow-list."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import sddit
from sddit.errors import Problem, one_of

OURS = "sddit"
FILE = "(file)"


@dataclass(slots=True)
class PluginInfo:
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
        """Identity of this plugin in run ids: the hash of its file, or distribution and version.

        For our own, it is the revision of the numbers, since a new version often gives the same bits.
        """
        return self.digest or f"{self.distribution} {sddit.__numerics__ if self.builtin else self.version}"


def plugin_name(path: Path) -> str:
    """Return the name of a one-file plugin, which qualifies its components."""
    return re.sub(r"\W", "_", path.stem)


def plugins_named_by(names: Iterable[str]) -> tuple[str, ...]:
    """Return the plugins that qualified component names refer to: `acme/masked` asks for `acme`."""
    return tuple(dict.fromkeys(name.rpartition("/")[0] for name in names if "/" in name))


def is_allowed(row: PluginInfo) -> bool:
    """Return whether SDDIT_PLUGINS=a,b allows a third-party or one-file plugin; empty allows none."""
    limit = os.environ.get("SDDIT_PLUGINS")
    if limit is None or row.builtin:
        return True
    names = {part.strip() for part in limit.split(",")}
    return bool(names & {row.name, Path(row.file).name if row.file else row.name})


def not_allowed(name: str) -> Problem:
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


def location_problem(name: str, path: Path, root: Path, where: str) -> Problem | None:
    """Return what is wrong with the location of a one-file plugin: it must be in the recipe's folder."""
    if not path.is_relative_to(root):
        return Problem(
            "SD-R130",
            "a one-file plugin must be inside the recipe's folder",
            where=where,
            got=name,
            expect=f"a file in {root}",
            fix="copy the file next to the recipe",
        )
    if not path.is_file():
        nearby = [f"./{found.name}" for found in root.glob("*.py") if found.is_file()]
        return Problem(
            "SD-P207",
            f"no plugin file {name!r}",
            where=where,
            got=f"{path} (a folder)" if path.is_dir() else str(path),
            expect=one_of(name, nearby) if nearby else "a file next to the recipe",
        )
    return None
