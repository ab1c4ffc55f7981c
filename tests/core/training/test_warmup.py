"""Test the warm-ups of the learning rate."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from sddit.interfaces import OptimizerParams
from sddit.recipes.resolve import resolve
from sddit.training.optimization import set_learning_rate


def rates(settings: OptimizerParams, total: int) -> list[float]:
    """Return the learning rate of each step."""
    optimizer = torch.optim.SGD([{"params": [torch.zeros(1)], "lr_scale": 1.0}], lr=0.0)
    found = []
    for step in range(total):
        set_learning_rate(optimizer, settings, step, total)
        found.append(optimizer.param_groups[0]["lr"])
    return found


def test_the_learning_rate_of_dino() -> None:
    """A warm-up from 0 with both ends included, then a cosine over the remaining steps (arXiv:2104.14294, code)."""
    total, warmup, base, final = 60, 10, 5e-4, 1e-6
    rest = np.arange(total - warmup)
    cosine = final + 0.5 * (base - final) * (1 + np.cos(np.pi * rest / len(rest)))
    expected = np.concatenate([np.linspace(0, base, warmup), cosine])
    table = {"start": base, "end": final, "shape": "cosine", "from": warmup}
    settings = OptimizerParams.model_validate({"lr": table, "warmup": warmup, "warmup_shape": "linspace"})
    assert rates(settings, total) == pytest.approx(expected, rel=1e-12, abs=1e-18)
    linear = OptimizerParams.model_validate({"lr": table, "warmup": warmup})
    assert rates(linear, total)[:warmup] == pytest.approx(base * np.arange(1, warmup + 1) / warmup, rel=1e-12)


def test_a_shape_without_a_warm_up_has_no_effect(toy_recipe: Path) -> None:
    shape, length = "optimizer.warmup_shape=linspace", "optimizer.warmup=2"
    assert resolve(toy_recipe, [shape]).idle == ("optimizer.warmup_shape",)
    assert resolve(toy_recipe, [shape, length]).idle == ()
    ids = [resolve(toy_recipe, keys).run_id for keys in ([length], [length, shape], [length, f"{shape[:-8]}linear"])]
    assert ids[0] == ids[2] != ids[1]
