"""Guard process-wide state that importing a plugin must not change. Imports none of the modules it watches."""

from __future__ import annotations

import contextlib
import os
import random
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Shared:
    """One piece of shared state: its name for a message, how to read it, and how to restore it."""

    name: str
    read: Callable[[], Any]
    restore: Callable[[Any], None]
    module: str = "sys"  # watched only where this module is imported
    fresh: Callable[[], Any] | None = None  # what it is right after that import, where that is known


def _torch() -> Any:
    return sys.modules["torch"]


def _numpy_state() -> tuple[Any, ...]:
    kind, keys, *rest = sys.modules["numpy.random"].get_state()
    return kind, tuple(keys.tolist()), *rest


def _torch_state() -> tuple[int, ...]:
    return tuple(_torch().get_rng_state().tolist())


SHARED = (
    Shared("the working directory", os.getcwd, os.chdir),
    Shared("Python's global random state", random.getstate, random.setstate),
    Shared(
        "NumPy's global random state",
        _numpy_state,
        lambda state: sys.modules["numpy.random"].set_state(state),
        "numpy.random",
    ),
    Shared(
        "torch's global random state",
        _torch_state,
        lambda state: _torch().set_rng_state(_torch().tensor(state, dtype=_torch().uint8)),
        "torch",
    ),
    Shared(
        "torch's default dtype",
        lambda: _torch().get_default_dtype(),
        lambda dtype: _torch().set_default_dtype(dtype),
        "torch",
        lambda: _torch().float32,
    ),
    Shared(
        "the number of torch's threads",
        lambda: _torch().get_num_threads(),
        lambda count: _torch().set_num_threads(count),
        "torch",
    ),
)


@contextlib.contextmanager
def unchanged_shared_state() -> Iterator[None]:
    """Restore the shared state that a block changed; if it raised nothing itself, raise RuntimeError naming the state.

    A module that the block is the first to import is compared with its fresh state, where that is known.
    """
    before = {item.name: item.read() for item in SHARED if item.module in sys.modules}
    try:
        yield
    finally:
        changed = [item.name for item in SHARED if _restore_if_changed(item, before)]
    if changed:
        raise RuntimeError(
            f"importing it changed {', '.join(changed)}; do that when a component is built, not on import"
        )


def _restore_if_changed(item: Shared, before: dict[str, Any]) -> bool:
    """Restore `item` if it changed, and return whether it did."""
    if item.module not in sys.modules or (item.name not in before and item.fresh is None):
        return False
    was = before[item.name] if item.name in before else item.fresh() if item.fresh else None
    changed = bool(item.read() != was)
    if changed:
        item.restore(was)
    return changed
