"""Hide the built-in plugins from this process, as if every folder under `plugins/` were removed.

`tests/core` puts this folder on PYTHONPATH, so that processes which its tests start find no built-in plugin either.
"""

from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

HIDDEN = frozenset(folder.name for folder in (Path(__file__).parents[3] / "plugins").glob("sddit_*"))
find_entry_points = importlib.metadata.entry_points


class Hide:
    """A finder that finds no built-in plugin."""

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: Any = None) -> ModuleSpec | None:
        if name.partition(".")[0] in HIDDEN:
            raise ModuleNotFoundError(f"{name}: built-in plugins are hidden in tests/core", name=name)
        return None


def entry_points(**chosen: str) -> tuple[importlib.metadata.EntryPoint, ...]:
    """Return the entry points that are not those of built-in plugins."""
    return tuple(entry for entry in find_entry_points(**chosen) if entry.module not in HIDDEN)


if __name__ == "sitecustomize":
    importlib.metadata.entry_points = entry_points  # type: ignore[assignment]
    sys.meta_path.insert(0, Hide())
