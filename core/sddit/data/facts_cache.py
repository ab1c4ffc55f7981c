"""Keep measured facts of external data, and arrays that are slow to make, in the user's cache folder. No torch."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from numpy.typing import NDArray

from sddit import __version__
from sddit.errors import SdditError
from sddit.storage.atomic import open_file, replace_file, staged_name

Value = TypeVar("Value")
FORMAT = 2  # of an entry
MAX_BYTES = 2**24  # of an entry


def cached(key: Any, compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return `compute()`, or its earlier result for this `key` (any JSON).

    An entry holds a checksum of its key and value. One that is damaged, edited or not a regular file is computed again,
    with a warning, and replaced. Without a usable cache folder the value is computed each time.
    """
    return _cached(key, compute, "json", _read_entry, _write_entry)


def cached_arrays(key: Any, compute: Callable[[], dict[str, NDArray[Any]]]) -> dict[str, NDArray[Any]]:
    """Return `compute()`, or its earlier result for this `key`, as `cached` does: arrays of numbers by their names."""
    return _cached(key, compute, "arrays", _read_arrays, _write_arrays)


def _cached(
    key: Any,
    compute: Callable[[], Value],
    suffix: str,
    read: Callable[[Path, str], Value],
    write: Callable[[Path, str, Value], None],
) -> Value:
    name = json.dumps([__version__, FORMAT, key])
    folder = cache_folder()
    if folder is None:
        return compute()
    path = folder / f"{_digest(name)}.{suffix}"
    try:
        return read(path, name)
    except (FileNotFoundError, NotADirectoryError):
        value = compute()
    except (OSError, ValueError, EOFError, RecursionError, MemoryError) as unusable:
        reason = getattr(unusable, "strerror", None) or str(unusable)[:200]
        warnings.warn(f"cached facts are not used, and are computed again: {path}: {reason}", stacklevel=3)
        value = compute()
    with suppress(OSError, SdditError):
        folder.mkdir(parents=True, exist_ok=True)
        write(path, name, value)
    return value


def _write_entry(path: Path, name: str, value: dict[str, Any]) -> None:
    checksum = _digest(name + json.dumps(value))
    replace_file(path, json.dumps({"value": value, "checksum": checksum}).encode())


def _read_arrays(path: Path, name: str) -> dict[str, NDArray[Any]]:
    """Return the arrays of an entry. Raises OSError, ValueError or EOFError for one that cannot be trusted."""
    from numpy.lib.format import read_array  # slow to import

    with os.fdopen(open_file(path), "rb") as file:
        header = json.loads(file.readline(MAX_BYTES) or b"null")
        if not isinstance(header, dict) or not isinstance(header.get("names"), list):
            raise ValueError("it has no header")
        value = {str(array): read_array(file, allow_pickle=False) for array in header["names"]}
    if header.get("checksum") != _digest_of_arrays(name, value):
        raise ValueError("its checksum differs from its content")
    return value


def _write_arrays(path: Path, name: str, value: Mapping[str, NDArray[Any]]) -> None:
    """Write an entry aside and rename it. The arrays are not copied in memory."""
    from numpy.lib.format import write_array

    staged = staged_name(path.parent, path.name)
    try:
        with staged.open("xb") as file:
            header = {"names": list(value), "checksum": _digest_of_arrays(name, value)}
            file.write(json.dumps(header).encode() + b"\n")
            for values in value.values():
                write_array(file, values, allow_pickle=False)
        staged.replace(path)
    finally:
        staged.unlink(missing_ok=True)


def _digest_of_arrays(name: str, value: Mapping[str, NDArray[Any]]) -> str:
    import numpy as np

    digest = blake2b(name.encode(), digest_size=16)
    for array, values in value.items():
        digest.update(f"{array} {values.dtype} {values.shape}".encode())
        digest.update(np.ascontiguousarray(values).data)
    return digest.hexdigest()


def cache_folder() -> Path | None:
    """Return the folder of cached facts, or None where neither XDG_CACHE_HOME nor a home folder gives one."""
    root = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if not root.is_absolute():  # a relative one is ignored, as the XDG specification asks
        try:
            root = Path("~/.cache").expanduser()
        except RuntimeError:  # no HOME and no entry of this user
            return None
    return root / "sddit" / "facts" if root.is_absolute() else None


def _read_entry(path: Path, name: str) -> dict[str, Any]:
    """Return the value of an entry. Raises OSError or ValueError for one that cannot be trusted."""
    with os.fdopen(open_file(path), "rb") as file:
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise ValueError("it is too large")
    try:
        entry = json.loads(data)
    except (ValueError, RecursionError):
        raise ValueError("it is not JSON") from None
    value = entry.get("value") if isinstance(entry, dict) else None
    if not isinstance(value, dict) or entry.get("checksum") != _digest(name + json.dumps(value)):
        raise ValueError("its checksum differs from its content")
    return value


def _digest(text: str) -> str:
    return blake2b(text.encode(), digest_size=16).hexdigest()
