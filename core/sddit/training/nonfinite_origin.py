"""Find the line of a plugin that makes the first non-finite number."""

from __future__ import annotations

import sys
import sysconfig
from collections.abc import Callable, Iterator, Mapping
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode, resolve_name

OURS = str(Path(__file__).parents[1])


class NonFiniteOrigin(TorchFunctionMode):
    """Watch all operations of torch. `operation` and `line` are those of the first with finite inputs but NaN or
    infinities in its output; empty if there was none.
    """

    def __init__(self, code: str = "") -> None:
        super().__init__()
        self.code = code
        self.operation = self.line = ""

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        if not self.operation and has_non_finite(result) and not has_non_finite((args, kwargs)):
            self.operation = (resolve_name(function) or getattr(function, "__name__", "")).removeprefix("torch.")
            self.line = self._calling_line()
        return result

    def _calling_line(self) -> str:
        """Return `file:line` of the innermost frame in the author's code."""
        frame, libraries = sys._getframe(2), (OURS, sysconfig.get_path("stdlib"))
        while frame is not None:
            name = frame.f_code.co_filename
            own = not name.startswith(("<", *libraries)) and "site-packages" not in name
            if Path(name).is_relative_to(self.code) if self.code else own:
                return f"{name}:{frame.f_lineno}"
            frame = frame.f_back  # type: ignore[assignment]
        return ""


def has_non_finite(value: Any) -> bool:
    return any(not bool(torch.isfinite(tensor).all()) for tensor in tensors_in(value))


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Yield the floating-point tensors in what a module or an operation takes or returns."""
    if is_dataclass(value):
        value = [getattr(value, name) for name in value.__dataclass_fields__]
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, (list, tuple, dict)):
        for entry in value.values() if isinstance(value, dict) else value:
            yield from tensors_in(entry)
