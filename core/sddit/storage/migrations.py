"""Checkpoints of earlier versions, read as if this one had written them. None is ever rewritten. No torch here.

A change of what `state.json` holds gets a number and a step here; a checkpoint takes all steps from its number on. One of
every format lies in `tests/fixtures/checkpoints` and is read by the tests for ever.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

FORMAT = 2
"""What this version writes."""

State = Mapping[str, Any]


def upgrade_from_1(state: State) -> State:
    """2 also names the items of each parameter's optimizer state, and the steps that were skipped."""
    if "imported" in state:
        return state
    return {**state, "optimized": {str(index): [] for index in state["optimized"]}, "skipped": []}


STEPS: Mapping[int, Callable[[State], State]] = {1: upgrade_from_1}
"""The step from each earlier format to the next."""


def upgrade_state(state: State, written: int) -> dict[str, Any]:
    """A `state.json` of format `written` in the form of this version."""
    for number in range(written, FORMAT):
        state = STEPS[number](state)
    return dict(state)
