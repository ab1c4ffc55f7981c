"""Recognize the usual mistakes of plugin authors by the exceptions they raise, and name the fix and the line."""

from __future__ import annotations

import dataclasses
import re
import sys
import sysconfig
import traceback
from pathlib import Path

from sddit import interfaces
from sddit.errors import message_of, nearest
from sddit.formatting import join_words

IMPORTS = {
    "F": "import torch.nn.functional as F",
    "Field": "from pydantic import Field",
    "LossTerm": "from sddit.losses import LossTerm",
    "Tensor": "from torch import Tensor",
    "hookimpl": "from sddit import hookimpl",
    "nn": "from torch import nn",
    "np": "import numpy as np",
    **{name: f"import {name}" for name in ("copy", "functools", "math", "torch")},
    **{name: f"from sddit.interfaces import {name}" for name in ("Cost", "LossParams", "Needs", "Want")},
}
"""{name that is often used without its import: the import}."""

NO_SUPER = "call super().__init__() before anything else in __init__"
DTYPE = (
    "name no dtype: take that of the input with x.to(other.dtype), "
    "or at least float32 with x.to(torch.promote_types(x.dtype, torch.float32))"
)
IN_PLACE = "an operation in place changes a tensor that the gradient needs: write x = x * 2, not x *= 2 or x.mul_(2)"
NEEDS = "declare in needs() what forward reads"
IS_NONE = (
    f"{NEEDS}: output=True for raw and x0, cls=True for class tokens; "
    "tokens.index and view.visible are None where no token is hidden"
)
LAST_DIMENSION = (
    "a layer multiplies the last dimension: of tokens.patch [B, n, D], that is D, widths[tap]; "
    "n is smaller where tokens are hidden"
)
MASKED = (
    "the tokens of a masked view are only those at tokens.index: "
    "take the targets at these positions, such as targets.gather(1, index), or teacher_tokens.at(tokens.index)"
)

ANY_KIND: tuple[tuple[type[Exception], str, str], ...] = (
    (NameError, r"name '(\w+)' is not defined", "import or define {}"),
    (AttributeError, r"before Module\.__init__\(\) call", NO_SUPER),
    (AttributeError, r"no attribute '_(?:modules|parameters|buffers|\w*hooks\w*|logged|non_persistent\w*)'", NO_SUPER),
    (RuntimeError, r"modified by an inplace operation|used in an in-place operation", IN_PLACE),
    (
        RuntimeError,
        r"same dtype|expected scalar type|type .* should be the same|but found (?:Double|Float|BFloat16|Half)",
        DTYPE,
    ),
    (
        Exception,
        r"not compiled with CUDA|No CUDA GPUs|tensors to be on the same device|[Nn]o NVIDIA driver",
        "name no device: create tensors on that of the input, such as torch.zeros(3, device=x.device)",
    ),
    (
        RuntimeError,
        r"non-annotated attribute was detected: `(couples_samples|per_process|trains_network)",
        "annotate it, {}: ClassVar[bool] = ..., with  from typing import ClassVar; or make it a property",
    ),
    (
        Exception,
        r"definition: (\w+)\(.*declared in the hookimpl but can not be found",
        "the argument of a hook is named registry: def {}(registry)",
    ),
    (TypeError, r"got an unexpected keyword argument '\w+'", "accept further arguments: end the signature with **_"),
)
"""(exception, pattern of its message, fix) for components of any kind."""

OF_LOSSES = (
    (RuntimeError, r"shapes cannot be multiplied", LAST_DIMENSION),
    (TypeError, r"forward\(\) (?:takes|missing)", "write  def forward(self, ctx, views, outputs)"),
    (TypeError, r"cost\(\) (?:takes|missing)", "write  def cost(self, backbone, shapes, view, num_kept)"),
    (KeyError, r"", f"{NEEDS}: taps=(...) for tokens, a second Want for a teacher"),
    (TypeError, r"NoneType", IS_NONE),
    (AttributeError, r"NoneType", IS_NONE),
)
OF_DATASETS = ((TypeError, r"__init__\(\)", "write  def __init__(self, params, *, split)"),)
OF_KIND: dict[str, tuple[tuple[type[Exception], str, str], ...]] = {"losses": OF_LOSSES, "datasets": OF_DATASETS}
"""{kind: the same for its components alone}."""

OTHER_SIZES = r"must match the size of tensor|must match the existing size|is invalid for|read at other positions"


def suggest_fix(failure: BaseException, *, kind: str = "", masked: bool = False) -> str:
    """Return the fix of a mistake that is recognized, or an empty string.

    Args:
        failure: what the component raised.
        kind: of the component, such as `losses`.
        masked: whether it read a view with hidden tokens.
    """
    message = message_of(failure)
    if isinstance(failure, NameError) and (name := getattr(failure, "name", None)) in IMPORTS:
        return f"add  {IMPORTS[name]}"
    if isinstance(failure, ImportError) and (match := re.match(r"cannot import name '(\w+)' from '([\w.]+)'", message)):
        close = nearest(match[1], dir(sys.modules.get(match[2])))
        return f"did you mean  from {match[2]} import {close}" if close else ""
    if masked and isinstance(failure, (RuntimeError, ValueError)) and re.search(OTHER_SIZES, message):
        return MASKED
    if (match := re.match(r"(\w+)\.__init__\(\) .*argument", message)) and (fix := fields_of(match[1])):
        return fix
    if isinstance(failure, NotImplementedError):
        return missing_method(failure)
    for raised, pattern, fix in (*OF_KIND.get(kind, ()), *ANY_KIND):
        if isinstance(failure, raised) and (match := re.search(pattern, message, re.DOTALL)):
            return fix.format(*match.groups())
    return similar_attribute(failure) if isinstance(failure, AttributeError) else ""


def fields_of(name: str) -> str:
    """Return which fields a dataclass of our contracts takes; empty if there is none of this name."""
    kind = getattr(interfaces, name, None)
    if not dataclasses.is_dataclass(kind):
        return ""
    needed = [f.name for f in dataclasses.fields(kind) if f.default is dataclasses.MISSING]
    named = needed or [f.name for f in dataclasses.fields(kind)]
    return f"{name} takes {join_words(named)}" + (", and what sddit.interfaces lists" if needed else "")


def missing_method(failure: NotImplementedError) -> str:
    """Return the fix of a method of our contracts that the author did not define, or an empty string."""
    frame = traceback.extract_tb(failure.__traceback__)[-1]
    return f"define {frame.name} in its params" if Path(frame.filename).parent.name == "interfaces" else ""


def similar_attribute(failure: AttributeError) -> str:
    """Return the fix of an attribute that does not exist, or an empty string."""
    name, owner = failure.name or "_", failure.obj
    if name.startswith("_"):
        return ""
    if close := nearest(name, [known for known in dir(owner) if not known.startswith("_")]):
        return f"did you mean .{close}?"
    fields = getattr(owner, "__dataclass_fields__", ())  # of Context, View, Outputs and Tokens
    return f"{type(owner).__name__} has {', '.join(fields)}" if fields else ""


def author_line(failure: BaseException, code: str = "") -> str:
    """Return `file:line` of the last frame in the author's own code, or an empty string.

    Args:
        failure: what the component raised.
        code: file or folder of the plugin; empty: any code that is neither ours, Python's nor an installed package's.
    """
    ours, python = str(Path(__file__).parents[1]), sysconfig.get_path("stdlib")
    for frame in reversed(traceback.extract_tb(failure.__traceback__)):
        name = frame.filename
        is_library = name.startswith(("<", ours, python)) or "site-packages" in name
        if Path(name).is_relative_to(code) if code else not is_library:
            return f"{name}:{frame.lineno}"
    return ""
