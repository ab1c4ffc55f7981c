"""Import a plugin under guard, and explain why it failed to load. Imports no module that it need not watch."""

from __future__ import annotations

import contextlib
import sys
import sysconfig
import threading
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from sddit.errors import Problem, nearest, one_of
from sddit.plugins import hookspecs
from sddit.plugins.discovery import PluginInfo
from sddit.plugins.mistakes import suggest_fix

SLOW_IMPORT_SECONDS = 30.0
"""After this time the user learns which plugin is still being imported."""

TORCH_DTYPE = "torch's default dtype"
SHARED_STATE = {
    "the working directory": ("os", "getcwd", "chdir"),
    "Python's global random state": ("random", "getstate", "setstate"),
    "NumPy's global random state": ("numpy.random", "get_state", "set_state"),
    "torch's global random state": ("torch", "get_rng_state", "set_rng_state"),
    TORCH_DTYPE: ("torch", "get_default_dtype", "set_default_dtype"),
    "the number of torch's threads": ("torch", "get_num_threads", "set_num_threads"),
}
"""{process-wide state that importing a plugin must not change: its module, getter and setter}."""


def import_file(path: Path, name: str, source: bytes) -> ModuleType:
    """Import exactly the bytes that were hashed; a stale bytecode cache is ignored."""
    module = ModuleType(f"sddit_file_{name}")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module
    try:
        exec(compile(source, path, "exec", dont_inherit=True), vars(module))
    except BaseException:
        del sys.modules[module.__name__]
        raise
    return module


def import_guarded(row: PluginInfo, load: Callable[[], object], announce: Callable[[str], None]) -> object:
    """Import a plugin. A third party's may neither print to stdout nor change state that all code shares."""
    if row.builtin:
        return load()
    slow = threading.Timer(SLOW_IMPORT_SECONDS, announce, [f"plugin {row.name}: still being imported"])
    slow.daemon = True
    slow.start()
    try:
        with contextlib.redirect_stdout(sys.stderr), unchanged_shared_state():
            return load()
    finally:
        slow.cancel()


@contextlib.contextmanager
def unchanged_shared_state() -> Iterator[None]:
    """Restore the shared state that a block changes. Raises RuntimeError, naming it, unless the block raised itself."""
    before = read_shared_state()
    try:
        yield
    finally:
        if torch := sys.modules.get("torch"):
            before.setdefault(TORCH_DTYPE, torch.float32)  # of a torch that the block is the first to import
        now = read_shared_state()
        changed = [name for name in now if name in before and _comparable(now[name]) != _comparable(before[name])]
        for name in changed:
            module, _, setter = SHARED_STATE[name]
            getattr(sys.modules[module], setter)(before[name])
    if changed:
        raise RuntimeError(
            f"importing it changed {', '.join(changed)}; do that when a component is built, not on import"
        )


def read_shared_state() -> dict[str, Any]:
    """Return the shared state of the modules that are imported so far."""
    return {
        name: getattr(sys.modules[module], getter)()
        for name, (module, getter, _) in SHARED_STATE.items()
        if module in sys.modules
    }


def _comparable(state: Any) -> Any:
    """Return a state with its arrays and tensors as lists, which `!=` compares as one value."""
    if isinstance(state, tuple):
        return [_comparable(part) for part in state]
    return state.tolist() if hasattr(state, "tolist") else state


def check_hooks(plugin: object) -> None:
    """Raise TypeError for a hook of unknown name, or one without the `@hookimpl` decorator."""
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


def load_problem(row: PluginInfo, where: str) -> Problem:
    kind = "built-in plugin" if row.builtin else "plugin"
    source = row.file or f"{row.distribution} {row.version}"
    known = suggest_fix(row.failure) if row.failure else ""
    fix = "install sddit again" if row.builtin else known or "correct the line above; --debug shows the full traceback"
    return Problem(
        "SD-P201",
        f"{kind} {row.name!r} failed to load",
        where=row.where or row.file or where,
        got=row.error,
        expect="" if row.file else f"{source} to load",
        fix=fix,
    )


def code_folder(plugin: object) -> str:
    """Return the folder of a package's code; of a single module, its file."""
    file = Path(getattr(plugin, "__file__", None) or "")
    return str(file.parent if file.name == "__init__.py" else file) if file.name else ""


def failing_line(failure: BaseException) -> str:
    """Return `file:line` of the innermost frame in the plugin's own code."""
    if isinstance(failure, SyntaxError) and failure.filename:
        return f"{failure.filename}:{failure.lineno}"
    frames = traceback.extract_tb(failure.__traceback__)
    ours, python = str(Path(__file__).parents[1]), sysconfig.get_path("stdlib")
    own = [
        f for f in frames if not f.filename.startswith(("<frozen", ours, python)) and "site-packages" not in f.filename
    ]
    return f"{own[-1].filename}:{own[-1].lineno}" if own else ""
