"""Keep measured facts of external data in the user's cache folder. No torch."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from hashlib import blake2b
from pathlib import Path
from typing import Any

from sddit import __version__


def cached(key: Any, compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return `compute()`, or its earlier result for this `key` (any JSON).

    Without a usable cache folder it is computed each time.
    """
    name = blake2b(json.dumps([__version__, key]).encode(), digest_size=16).hexdigest()
    path = _folder() / f"{name}.json"
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return found
    except (OSError, ValueError, RecursionError):
        value = compute()
    _keep(path, value)
    return value


def _folder() -> Path:
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path("~/.cache").expanduser()) / "sddit" / "facts"


def _keep(path: Path, value: dict[str, Any]) -> None:
    """Write atomically. A folder that cannot be written is ignored."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, suffix=".part", delete=False, encoding="utf-8") as file:
            json.dump(value, file)
        Path(file.name).replace(path)
    except OSError:
        return
