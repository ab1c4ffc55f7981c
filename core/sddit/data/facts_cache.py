"""Keep measured facts of external data in the user's cache folder. No torch."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path
from typing import Any

from sddit import __version__
from sddit.errors import SdditError
from sddit.storage.atomic import replace_file


def cached(key: Any, compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return `compute()`, or its earlier result for this `key` (any JSON).

    Without a usable cache folder it is computed each time.
    """
    name = blake2b(json.dumps([__version__, key]).encode(), digest_size=16).hexdigest()
    root = os.environ.get("XDG_CACHE_HOME")
    folder = (Path(root) if root else Path("~/.cache").expanduser()) / "sddit" / "facts"
    path = folder / f"{name}.json"
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return found
    except (OSError, ValueError, RecursionError):
        value = compute()
    with suppress(OSError, SdditError):
        folder.mkdir(parents=True, exist_ok=True)
        replace_file(path, json.dumps(value).encode())
    return value
