"""Check the facts that a data set states, before anything is built. Torch-free."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, get_type_hints

from pydantic import TypeAdapter, ValidationError

from sddit.errors import Problem
from sddit.interfaces import DataFacts

PER_CHANNEL = "image=(C, H, W), and one number per channel: mean=(0.1,), std=(0.5,)"
FIXES = {
    "image": "image=(C, H, W), such as (3, 32, 32)",
    "class_names": 'class_names=("cat", "dog"), a tuple of texts; () for images without classes',
    "train_size": "train_size=..., the number of images in the training split",
    "test_size": "test_size=..., the number of held-out images; 0 if there are none",
    "fingerprint": "fingerprint=hashlib.sha256(...).hexdigest(), of the images, the labels and the split",
    "mean": PER_CHANNEL,
    "std": f"{PER_CHANNEL}, above 0",
}
"""{field: how to state it}."""

RULES: tuple[tuple[str, Callable[[DataFacts], bool], str], ...] = (
    ("image", lambda facts: min(facts.image) > 0, "image has a size below 1"),
    ("train_size", lambda facts: facts.train_size >= 0, "train_size is negative"),
    ("test_size", lambda facts: facts.test_size >= 0, "test_size is negative"),
    ("fingerprint", lambda facts: bool(facts.fingerprint), "it has no fingerprint"),
    ("mean", lambda facts: len(facts.mean) == facts.image[0], "mean is not one number per channel"),
    ("std", lambda facts: len(facts.std) == facts.image[0], "std is not one number per channel"),
    ("mean", lambda facts: all(map(math.isfinite, facts.mean)), "the mean is not finite"),
    ("std", lambda facts: all(0 <= std < math.inf for std in facts.std), "the standard deviation is not a number"),
    ("std", lambda facts: any(facts.std), "the standard deviation is not above 0"),
)
"""(field, what must hold, what is wrong if it does not)."""


def facts_problems(facts: object, where: str) -> Iterator[Problem]:
    """Yield a problem for each fact of another type than `DataFacts` has, and for each value that no data can have."""
    if not isinstance(facts, DataFacts):
        got, fix = type(facts).__name__, "end facts with  return DataFacts(image=..., class_names=..., ...)"
        yield Problem("SD-P220", "facts() does not return DataFacts", where, got, "DataFacts", fix)
        return
    types = get_type_hints(DataFacts)
    wrong = [name for name, kind in types.items() if not _is_of(kind, getattr(facts, name))]
    for name in wrong:
        kind = types[name]
        expect = kind.__name__ if isinstance(kind, type) and kind.__module__ == "builtins" else str(kind)
        what, got = f"facts() states {name} as {type(getattr(facts, name)).__name__}", repr(getattr(facts, name))
        yield Problem("SD-P220", what, where, got, expect, f"state {FIXES[name]}" if name in FIXES else "")
    if wrong:
        return
    for name, holds, what in RULES:
        if not holds(facts):
            yield Problem("SD-P220", what, where, f"{name}={getattr(facts, name)!r}", fix=f"state {FIXES[name]}")


def _is_of(kind: Any, value: object) -> bool:
    """Return whether a value is of a type, without conversion."""
    try:
        TypeAdapter[Any](kind).validate_python(value, strict=True)
    except ValidationError:
        return False
    return True
