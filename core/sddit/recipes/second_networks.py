"""Find the weights of the second network that a guidance rule compares with. Torch-free."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from sddit.errors import SdditError, error
from sddit.interfaces import SecondNetwork
from sddit.recipes.selection import Selector
from sddit.recipes.start_weights import LocatedWeights, find_weights


def with_second_network(selector: Selector, slots: dict[str, Any]) -> dict[str, Any]:
    """Fill in label, step and hash of the second network that the guidance of a recipe names, if any.

    The hash that a resolved recipe has is checked when the weights are read.
    """
    second: SecondNetwork | None = slots["guidance"].params.second_network if "guidance" in slots else None
    if second is None or not second.run or (selector.merged.resolved and second.sha256):
        return slots
    try:
        weights = find_second(second)
    except SdditError as failure:
        where = f"{selector.merged.place('guidance')} (guidance)"
        selector.add(replace(problem, where=where, got=problem.got or second.run) for problem in failure.problems)
        return slots
    found = replace(second, weights=weights.label, step=weights.step, sha256=weights.sha256)
    guidance = slots["guidance"]
    return {**slots, "guidance": replace(guidance, params=guidance.params.with_second_network(found))}


def find_second(second: SecondNetwork) -> LocatedWeights:
    """Return the weights of a second network. Raises as `find_weights` does, and SD-C451 for another hash."""
    weights = find_weights(Path(second.run), second.weights, second.step)
    if second.sha256 not in ("", weights.sha256):
        raise error(
            "SD-C451",
            "the second network of the guidance has other weights than the recipe names",
            where="guidance",
            got=weights.sha256,
            expect=second.sha256,
            fix=f"name the step of {second.run} that has them, or remove the hash from [guidance]",
        )
    return weights
