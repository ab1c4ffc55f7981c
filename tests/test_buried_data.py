"""Run docs/examples/buried_data.py for a moment: x-prediction finds buried data where other predictions do not."""

from __future__ import annotations

import math
from pathlib import Path
from runpy import run_path
from typing import Any

import pytest
import torch

SCRIPT = Path(__file__).parents[1] / "docs" / "examples" / "buried_data.py"


@pytest.fixture(scope="module")
def script() -> dict[str, Any]:
    return run_path(str(SCRIPT))


def distance(script: dict[str, Any], dimension: int, prediction: str) -> float:
    """Return the distance of samples from the plane of the data, as a fraction of that of noise."""
    network, schedule = script["train"](dimension, prediction, "velocity", 0, 80)
    points = script["sampled"](network, schedule, dimension, 0)
    found: float = script["errors"](points, script["basis"](dimension, 0))[1]
    return found / math.sqrt(dimension - 2)


def test_only_x_prediction_finds_the_plane_where_the_width_is_too_small(script: dict[str, Any]) -> None:
    """The control has few dimensions: there the other prediction is on its way after as many steps."""
    dimension = 2 * script["WIDTH"]
    assert distance(script, dimension, "x0") < 0.1
    assert distance(script, dimension, "velocity") > 0.8
    assert distance(script, 6, "velocity") < 0.65


def test_its_measures(script: dict[str, Any]) -> None:
    one, two = script["spiral"](500, 0).double(), script["spiral"](500, 1).double()
    assert abs(script["energy_distance"](one, two)) < 0.01
    assert script["energy_distance"](one, two + 1) > 0.2
    into = script["basis"](7, 0)
    torch.testing.assert_close(into.T @ into, torch.eye(2), rtol=0, atol=1e-6)
    inside, outside = script["errors"](script["spiral"](2000, 3).double() @ into.double().T, into)
    assert abs(inside) < 0.01
    assert outside < 1e-6
