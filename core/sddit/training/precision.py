"""Map precisions to dtypes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from sddit.recipes.settings import Precision

DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.float32, "fp64": torch.float64}
"""The dtype of weights. bf16 is an autocast over float32 weights."""


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Build modules in `dtype`, tables and constants included."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
