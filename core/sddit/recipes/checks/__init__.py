"""Check the rules between the slots of a recipe. They ask the components' settings and name no method. Torch-free."""

from __future__ import annotations

from sddit.errors import Problem
from sddit.recipes.checks.codec_rules import check_codec
from sddit.recipes.checks.contracts import check_answers, check_components, components, idle_keys, own_warnings
from sddit.recipes.checks.evaluation_rules import (
    check_evaluation,
    check_guidance,
    check_sampling,
    check_second_network,
    check_trackers,
)
from sddit.recipes.checks.loss_rules import (
    check_heads,
    check_losses,
    check_masks,
    check_taps,
    check_views,
    check_windows,
)
from sddit.recipes.checks.training_rules import (
    check_attention,
    check_balance,
    check_batch,
    check_device,
    check_learning_rate,
    check_processes,
    check_times,
)
from sddit.recipes.recipe import Recipe

__all__ = ["check", "check_device", "check_processes", "components", "idle_keys", "own_warnings"]

RULES = (
    check_losses,
    check_views,
    check_taps,
    check_heads,
    check_masks,
    check_times,
    check_windows,
    check_batch,
    check_balance,
    check_learning_rate,
    check_attention,
    check_sampling,
    check_evaluation,
    check_guidance,
    check_second_network,
    check_trackers,
    check_codec,
    check_components,
)
"""The rules, in the order in which their problems are reported."""


def check(recipe: Recipe) -> list[Problem]:
    """Return everything that cannot work together, each problem once."""
    if unanswered := list(check_answers(recipe)):
        return unanswered
    return list(dict.fromkeys(problem for rule in RULES for problem in rule(recipe)))
