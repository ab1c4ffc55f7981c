"""Detect that a third-party plugin changes, while it works, what all code of the process shares."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from enum import Enum
from functools import partial
from itertools import chain
from types import FunctionType
from typing import Any

from sddit.errors import SdditError, error
from sddit.plugins.host import host, third_party
from sddit.plugins.leftovers import suspects
from sddit.storage.atomic import file_identity

CLASSES = "*"  # every class of a module
LIBRARIES = (
    ("torch", ""),
    ("torch", "Tensor"),
    ("torch.nn", CLASSES),
    ("torch.nn.functional", ""),
    ("torch.optim", CLASSES),
    ("torch.autograd", ""),
    ("safetensors.torch", ""),
    ("numpy", ""),
    ("os", ""),
    ("pathlib", CLASSES),
    ("hashlib", ""),
    ("json", ""),
    ("time", ""),
)
"""Modules and classes whose functions a plugin must not replace: every other code would call the replacement."""
HANDLED = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


def working_directory() -> str:
    """Return the current folder; empty if it no longer exists."""
    try:
        return os.getcwd()  # noqa: PTH109
    except FileNotFoundError:
        return ""  # it was removed, which is not the plugin's doing


def is_open(descriptor: int) -> str:
    """Return `open` or `closed`."""
    return "open" if any(file_identity(descriptor)) else "closed"


def settings() -> dict[str, Callable[[], Any]]:
    """Return how to read each setting that is compared, by its name in messages."""
    import torch

    return {
        "torch's default dtype": torch.get_default_dtype,
        "torch's default device": torch.get_default_device,
        "torch's gradient mode (torch.is_grad_enabled)": torch.is_grad_enabled,
        "torch's inference mode": torch.is_inference_mode_enabled,
        "torch's anomaly detection": torch.is_anomaly_enabled,
        "torch's autocast": torch.is_autocast_enabled,
        "the number of torch's threads": torch.get_num_threads,
        "torch.use_deterministic_algorithms": torch.are_deterministic_algorithms_enabled,
        "torch.set_float32_matmul_precision": torch.get_float32_matmul_precision,
        "torch.backends.cudnn.deterministic": lambda: torch.backends.cudnn.deterministic,
        "torch.backends.cudnn.benchmark": lambda: torch.backends.cudnn.benchmark,
        "the working directory": working_directory,
        **{f"descriptor {number}": partial(is_open, number) for number in (0, 1, 2)},
        "sys.stdout": lambda: "closed" if getattr(sys.stdout, "closed", True) else "open",
        "sys.stderr": lambda: "closed" if getattr(sys.stderr, "closed", True) else "open",
        **{f"the handler of {number.name}": partial(signal.getsignal, number) for number in HANDLED},
    }


class SharedState:
    """Settings and functions of libraries as they are when training begins. Nothing is read without such a plugin."""

    def __init__(self) -> None:
        self._read = settings() if third_party() else {}
        self._before = {name: read() for name, read in self._read.items()}
        self._functions = {name: dict(vars(owner)) for name, owner in namespaces()} if self._read else {}
        self._seen: tuple[int, ...] = ()

    def refuse_changes(self) -> None:
        """Raise SD-P228 for what has changed since the start."""
        for name, read in self._read.items():
            if (now := read()) != self._before[name]:
                raise changed_error(name, f"{describe(self._before[name])} -> {describe(now)}", file_of(now))
        if self._read and self._seen != (found := function_ids()):
            refuse_replaced_functions()
            self._refuse_exchanged_functions()
            self._seen = found

    def _refuse_exchanged_functions(self) -> None:
        """Raise SD-P228 for a function of a library that is now another one, wherever that was written.

        A new function of torch is accepted: it replaces some of its own when it compiles or builds an optimizer.
        """
        earlier = {id(value) for values in self._functions.values() for value in values.values()}
        for place, owner in namespaces():
            known = self._functions.get(place, vars(owner))
            for name in known.keys() | vars(owner).keys():
                before, now = known.get(name, inherited(owner, name)), vars(owner).get(name)
                is_new_of_torch = (
                    isinstance(now, FunctionType) and now.__module__.startswith("torch") and id(now) not in earlier
                )
                if callable(before) and now is not before and not is_new_of_torch:
                    raise changed_error(f"{place}.{name}", f"{describe(before)} -> {describe(now)}", file_of(now))


def describe(value: Any) -> str:
    """Return a value as a message shows it, without addresses in memory."""
    if isinstance(value, Enum):
        return value.name
    return str(getattr(value, "__qualname__", f"a {type(value).__name__}" if callable(value) else value))


def file_of(value: Any) -> str:
    """Return the file of a function, or of the function in it that a decorator or `functools.partial` wraps."""
    for name in ("__wrapped__", "func", "__func__"):
        value = getattr(value, name, value)
    code = getattr(value, "__code__", None) or getattr(type(value).__call__, "__code__", None)
    return str(getattr(code, "co_filename", ""))


def changed_error(what: str, got: str, file: str = "") -> SdditError:
    """Return SD-P228. It names the plugin that `file` is of, else the only one, else all of them."""
    row = host().owner_of(file)
    by = f"plugin {row.name!r}" if row else suspects().removeprefix(" by ") or "a plugin"
    names = [row.name] if row else third_party()
    return error(
        "SD-P228",
        f"{by} changed {what} during the run",
        where=", ".join(row.code for name in names if (row := host().rows.get(name))) or "a plugin",
        got=got,
        expect="as before: all code of this process shares it",
        fix="restore it in the plugin before it returns, or do without the change",
    )


def namespaces() -> Iterator[tuple[str, Any]]:
    """Yield name and module or class of each of `LIBRARIES` that is imported."""
    for module, attribute in LIBRARIES:
        if (found := sys.modules.get(module)) is not None:
            if attribute == CLASSES:
                classes = {name: value for name, value in vars(found).items() if isinstance(value, type)}
                yield from ((f"{module}.{name}", value) for name, value in classes.items())
            else:
                yield f"{module}.{attribute}".rstrip("."), getattr(found, attribute) if attribute else found


def inherited(owner: Any, name: str) -> Any:
    """Return what a class has from those that it is derived from; None if it has nothing, as a module."""
    bases = owner.__mro__[1:] if isinstance(owner, type) else ()
    return next((vars(base)[name] for base in bases if name in vars(base)), None)


def function_ids() -> tuple[int, ...]:
    """Return the identities of all values of `LIBRARIES`, to notice a change quickly."""
    return tuple(chain.from_iterable(map(id, tuple(vars(owner).values())) for _, owner in namespaces()))


def refuse_replaced_functions() -> None:
    """Raise SD-P228 for a function of a library that is now code of a plugin."""
    if not third_party():
        return
    for place, owner in namespaces():
        for name, value in tuple(vars(owner).items()):
            function = getattr(value, "__wrapped__", value)
            for candidate in (value, function):
                code = candidate.__code__ if isinstance(candidate, FunctionType) else None
                if code is not None and host().owner_of(code.co_filename):
                    got = f"the code at {code.co_filename}:{code.co_firstlineno}"
                    raise changed_error(f"{place}.{name}", got, code.co_filename)
