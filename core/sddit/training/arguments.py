"""Check the arguments of the functions for Python, so that a mistake ends in a message instead of a traceback."""

from __future__ import annotations

import math
import operator
import os
from pathlib import Path
from typing import Any

import torch

from sddit.errors import SdditError, error, expand_user, one_of
from sddit.training.environment import choose_device

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32, "float64": torch.float64}


def wrong_argument(what: str, name: str, value: Any, expect: str) -> SdditError:
    """Return the error SD-T925."""
    return error("SD-T925", what, where=name, got=f"{value!r:.80} ({type(value).__name__})", expect=expect)


def whole_argument(value: Any, name: str, low: int, high: int) -> int:
    """Return a whole number of Python, NumPy or PyTorch. Raises SD-T925 for another type, or outside of [low, high]."""
    expect = f"a whole number from {low} to {high:,}"
    try:
        if isinstance(value, bool) or getattr(value, "ndim", None):
            raise TypeError
        number = operator.index(value)
    except TypeError:
        raise wrong_argument(f"{name} is not a whole number", name, value, expect) from None
    if not low <= number <= high:
        raise error("SD-T925", f"{name} is out of range", where=name, got=f"{name} = {number}", expect=expect)
    return number


def number_argument(value: Any, name: str) -> float:
    """Return a number of Python, NumPy or PyTorch. Raises SD-T925 for another type, and for NaN and infinity."""
    try:
        if isinstance(value, (bool, str)):
            raise TypeError
        number = float(value)
    except (TypeError, ValueError, RuntimeError):
        raise wrong_argument(f"{name} is not a number", name, value, "a number") from None
    if not math.isfinite(number):
        raise error("SD-T925", f"{name} is not finite", where=name, got=str(number), expect="a finite number")
    return number


def text_argument(value: Any, name: str) -> str:
    """Return a text. Raises SD-T925 for another type."""
    if not isinstance(value, str):
        raise wrong_argument(f"{name} is not a text", name, value, "a text in quotes")
    return value


def path_argument(value: Any, name: str) -> Path:
    """Return a path, in which `~` is the home folder.

    Raises SD-T925 for an empty text or another type, SD-F707 for an unknown home folder.
    """
    if not isinstance(value, (str, os.PathLike)) or not str(value).strip() or "\0" in str(value):
        raise wrong_argument(f"{name} is not a path", name, value, "the path of a file or folder")
    return expand_user(Path(value), name)


def device_argument(value: Any) -> torch.device:
    """Return a device from its name such as `cpu` or `cuda:1`. Raises SD-R162 or SD-P230 as `--device` does."""
    name = str(value) if isinstance(value, (str, torch.device)) else ""
    if not name:
        raise wrong_argument("not a device", "device", value, "cpu, cuda, cuda:1 or a torch.device")
    kind, _, index = name.partition(":")
    if kind != "cuda" or not index:
        return choose_device("cpu" if name == "cpu:0" else name, where="device")
    choose_device(kind, where="device")
    count = torch.cuda.device_count()
    if not index.isdecimal() or int(index) >= count:
        raise error("SD-R162", f"no device {name!r}", where="device", got=name, expect=f"cuda:0 to cuda:{count - 1}")
    return torch.device(name)


def dtype_argument(value: Any) -> torch.dtype | None:
    """Return a dtype of weights from itself or its name; None remains None. Raises SD-T925 for others."""
    known = {**DTYPES, **{f"torch.{name}": dtype for name, dtype in DTYPES.items()}}
    if value is None or value in DTYPES.values():
        return value  # type: ignore[no-any-return]
    if isinstance(value, str) and value in known:
        return known[value]
    raise wrong_argument("not a dtype of weights", "dtype", value, one_of(str(value), DTYPES))
