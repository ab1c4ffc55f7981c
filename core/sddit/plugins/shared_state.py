"""Detect that a third-party plugin changes, while it works, what all code of the process shares."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from enum import Enum
from functools import partial
from types import FunctionType
from typing import Any

from sddit.errors import SdditError, error
from sddit.plugins.host import host, third_party
from sddit.plugins.leftovers import suspects
from sddit.storage.atomic import file_identity

LIBRARIES = (
    ("torch", ""),
    ("torch", "Tensor"),
    ("torch.nn", "Module"),
    ("torch.nn.functional", ""),
    ("torch.optim", "Optimizer"),
    ("torch.autograd", ""),
    ("safetensors.torch", ""),
    ("numpy", ""),
    ("os", ""),
    ("json", ""),
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
        self._functions: tuple[int, ...] = ()

    def refuse_changes(self) -> None:
        """Raise SD-P228 for what has changed since the start."""
        for name, read in self._read.items():
            if (now := read()) != self._before[name]:
                raise changed_error(name, f"{describe(self._before[name])} -> {describe(now)}")
        if self._read and self._functions != (found := function_ids()):
            self._functions = found
            refuse_replaced_functions()


def describe(value: Any) -> str:
    """Return a value as a message shows it, without addresses in memory."""
    return value.name if isinstance(value, Enum) else str(getattr(value, "__qualname__", value))


def changed_error(what: str, got: str) -> SdditError:
    """Return SD-P228, which names the plugin, or all of them if there are several."""
    by = suspects().removeprefix(" by ") or "a plugin"
    return error(
        "SD-P228",
        f"{by} changed {what} during the run",
        where=", ".join(row.code for name in third_party() if (row := host().rows.get(name))) or "a plugin",
        got=got,
        expect="as before: all code of this process shares it",
        fix="restore it in the plugin before it returns, or do without the change",
    )


def namespaces() -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield name and contents of each of `LIBRARIES` that is imported."""
    for module, attribute in LIBRARIES:
        if (found := sys.modules.get(module)) is not None:
            owner = getattr(found, attribute) if attribute else found
            yield f"{module}.{attribute}".rstrip("."), vars(owner)


def function_ids() -> tuple[int, ...]:
    """Return the identities of all values of `LIBRARIES`, to notice a change quickly."""
    return tuple(id(value) for _, values in namespaces() for value in tuple(values.values()))


def refuse_replaced_functions() -> None:
    """Raise SD-P228 for a function of a library that is now code of a plugin."""
    for owner, values in namespaces():
        for name, value in tuple(values.items()):
            function = getattr(value, "__wrapped__", value)
            for candidate in (value, function):
                code = candidate.__code__ if isinstance(candidate, FunctionType) else None
                if code is not None and host().owner_of(code.co_filename):
                    raise changed_error(f"{owner}.{name}", f"the code at {code.co_filename}:{code.co_firstlineno}")
