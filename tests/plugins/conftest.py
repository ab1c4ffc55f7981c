"""Compute the random weights of registered sizes, which published numbers define by formula."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

FormulaWeights = Callable[[Any, Mapping[str, torch.Size]], dict[str, Tensor]]


@pytest.fixture
def formula_weights() -> FormulaWeights:
    """`formula_weights(stored, sizes)`: float32 tensors under their names, splitmix64 of (seed, name, element)."""

    def make(stored: Any, sizes: Mapping[str, torch.Size]) -> dict[str, Tensor]:
        weights = {}
        for name, scale in stored.meta["scales"].items():
            numbers = uniform((stored.meta["generator_seed"] << 32) + zlib.crc32(name.encode()), sizes[name].numel())
            weights[name] = torch.from_numpy(numbers * np.float32(scale)).reshape(sizes[name])
        sums = torch.stack([torch.stack([w.double().sum(), w.double().abs().sum()]) for w in weights.values()])
        torch.testing.assert_close(sums, stored.outputs["check/sum_and_abs_sum"], rtol=1e-9, atol=1e-9)
        return weights

    return make


def uniform(seed: int, count: int) -> Any:
    """`count` float32 numbers in [-1, 1)."""
    z = np.uint64(seed) + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z = z ^ (z >> np.uint64(31))
    return (z >> np.uint64(40)).astype(np.float32) / np.float32(2**23) - np.float32(1)
