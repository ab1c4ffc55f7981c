"""Upgrade the state of checkpoints of earlier formats when they are read. Files are never rewritten. Torch-free.

Each change of `state.json` gets a format number and an upgrade step here. `tests/fixtures/checkpoints` has a checkpoint
of every format.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

FORMAT = 2
"""The format that this version writes."""

State = Mapping[str, Any]


def upgrade_from_1(state: State) -> State:
    """Add the item names of each parameter's optimizer state, and the skipped steps."""
    if "imported" in state:
        return state
    return {**state, "optimized": {str(index): [] for index in state["optimized"]}, "skipped": []}


STEPS: Mapping[int, Callable[[State], State]] = {1: upgrade_from_1}
"""{format: function that upgrades it to the next}."""


def upgrade_state(state: State, written: int) -> dict[str, Any]:
    """Upgrade a `state.json` of format `written` to the current format."""
    for number in range(written, FORMAT):
        state = STEPS[number](state)
    return dict(state)
