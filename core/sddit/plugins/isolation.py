"""Guard process-wide state that importing a plugin must not change. Imports no module that it need not watch."""

from __future__ import annotations

import contextlib
import os
import random
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Shared:
    """One piece of shared state, watched where its module is imported."""

    name: str  # for a message
    module: str
    getter: str  # functions of that module
    setter: str
    fresh: str = ""  # attribute that holds the state right after that import, where that is known

    def read(self) -> Any:
        return getattr(sys.modules[self.module], self.getter)()

    def restore_if_changed(self, before: dict[str, Any]) -> bool:
        """Restore the state if it changed, and return whether it did."""
        if self.module not in sys.modules or (self.name not in before and not self.fresh):
            return False
        module = sys.modules[self.module]
        was = before[self.name] if self.name in before else getattr(module, self.fresh)
        changed = bool(_comparable(self.read()) != _comparable(was))
        if changed:
            getattr(module, self.setter)(was)
        return changed


SHARED = (
    Shared("the working directory", os.__name__, "getcwd", "chdir"),
    Shared("Python's global random state", random.__name__, "getstate", "setstate"),
    Shared("NumPy's global random state", "numpy.random", "get_state", "set_state"),
    Shared("torch's global random state", "torch", "get_rng_state", "set_rng_state"),
    Shared("torch's default dtype", "torch", "get_default_dtype", "set_default_dtype", fresh="float32"),
    Shared("the number of torch's threads", "torch", "get_num_threads", "set_num_threads"),
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
        changed = [item.name for item in SHARED if item.restore_if_changed(before)]
    if changed:
        raise RuntimeError(
            f"importing it changed {', '.join(changed)}; do that when a component is built, not on import"
        )


def _comparable(state: Any) -> Any:
    """Return a state with its arrays and tensors as lists, which `!=` compares as one value."""
    if isinstance(state, tuple):
        return [_comparable(part) for part in state]
    return state.tolist() if hasattr(state, "tolist") else state
