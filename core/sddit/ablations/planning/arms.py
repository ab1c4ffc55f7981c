"""Resolve the arms of `[ablation]`: every arm is a recipe of its own, checked before the first run. No torch.

The axes are crossed: the named arms, each key of the grid, each table of pairs. The changes of an arm are merged into
the recipe as a file would be: a table whose `name` changes is replaced, and `loss.x = false` removes a loss. In an arm,
`extends` replaces the recipe that the ablation extends; what the ablation sets for all arms is merged into that.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from sddit.ablations.planning.ablation_settings import AblationSettings
from sddit.ablations.planning.arm_checks import (
    ArmProblems,
    label_problems,
    metric_problems,
    seed_problems,
    target_problems,
    unknown_baseline,
)
from sddit.ablations.planning.axes import ArmChange, axes, baseline_label, value_lists
from sddit.ablations.planning.settings_checks import EXTENDS, read_settings, usable_arms, usable_lists
from sddit.errors import raise_all
from sddit.plugins.host import Host
from sddit.recipes.checks import check_device
from sddit.recipes.costs import Plan, plan
from sddit.recipes.merge import Merged, Origin, chain, leaves, merge_into, parent_of, stacked
from sddit.recipes.recipe import Recipe
from sddit.recipes.resolve import ABLATION as TABLE
from sddit.recipes.resolve import resolve_merged

AXES = {"arms", "grid", "pairs"}


@dataclass(frozen=True)
class Arm:
    """The recipe with the changes of one named arm and one point of the grid."""

    label: str
    changes: Mapping[str, Any]  # dotted key -> value
    baseline: str  # label of the arm it is compared with
    named: str  # arm of [ablation.arms] whose grid point this is; empty if there is none
    recipe: Recipe
    merged: Merged = field(repr=False)  # its layers, from which it is resolved at another length

    @cached_property
    def cost(self) -> Plan:
        return plan(self.recipe)

    @property
    def images(self) -> int:
        """Images seen in the run."""
        return self.cost.steps * self.cost.batch

    @property
    def parameters(self) -> int | None:
        """Trained parameters: the backbone and the heads of the losses."""
        parts = [self.cost.backbone_parameters, *self.cost.heads_parameters.values()]
        return None if None in parts else sum(part or 0 for part in parts)


@dataclass(frozen=True)
class Ablation:
    """An ablation whose arms are checked."""

    settings: AblationSettings
    base: Recipe  # without changes: its length is the budget
    arms: tuple[Arm, ...]
    metrics: tuple[str, ...]  # "classifier.fd"
    command: str = ""  # the command that runs it
    published: Path | None = None  # folder of published results to compare with


def is_ablation(merged: Merged) -> bool:
    """Return whether a recipe has `[ablation]`."""
    return TABLE in merged.tables


def expand(merged: Merged, *, host: Host | None = None, device: str = "") -> Ablation:
    """Resolve and check all arms of an ablation.

    Args:
        host: plugins to choose components from; the default host if None.
        device: device type (`cpu`, `cuda`) on which every arm must be able to train; empty: not checked.

    Raises:
        SdditError: with every problem of `[ablation]` and of every arm; each names its arms.
    """
    problems = ArmProblems()
    settings, invalid = read_settings(merged, problems)
    base = None
    with problems.collecting():
        base = resolve_merged(merged, host=host)
    lists = usable_lists(settings, merged, problems)
    named = usable_arms(settings, merged, problems)
    points = list(itertools.product(*axes(named, lists)))
    labels = [" ".join(change.label for change in changes) or "base" for changes in points]  # `sd_dit mask_ratio=0.1`
    arms: list[Arm] = []
    for label, changes in zip(labels, points, strict=True):
        with problems.collecting(label):
            changed = apply_changes(merged, changes)
            recipe = resolve_merged(changed, host=host)
            values = dict(leaf for change in changes for leaf in leaves(change.table))
            name, baseline = changes[0].label if settings.arms else "", baseline_label(settings, changes, labels)
            arms.append(Arm(label, values, baseline, name, recipe, changed))
            raise_all(check_device(recipe, device) if device else [])
    recipes = {arm.label: arm.recipe for arm in arms}
    metrics = settings.metrics or tuple(f"{label}.fd" for label in (base.features if base else ()))
    problems.add(label_problems(settings, labels, merged))
    if len(lists) == len(value_lists(settings)) and not invalid & AXES:  # else the labels are not known
        problems.add(unknown_baseline(settings, labels, merged))
    if "metrics" not in invalid:
        problems.add(metric_problems(metrics, recipes, merged))
    if "metrics" not in invalid and (base or settings.metrics):
        problems.add(target_problems(settings, metrics, recipes, merged))
    problems.add(seed_problems(settings, recipes, merged))
    raise_all(problems)
    assert base is not None  # otherwise there is a problem
    published = Path(merged.absolute(f"{TABLE}.published", settings.published)) if settings.published else None
    return Ablation(settings, base, tuple(arms), metrics, merged.command, published)


def apply_changes(merged: Merged, changes: Iterable[ArmChange]) -> Merged:
    """Return the recipe with changes. Values that they do not set count as inherited."""
    changed = rebase(merged, changes)
    del changed.tables[TABLE]
    changed.origins = {key: replace(origin, inherited=True) for key, origin in changed.origins.items()}
    for change in changes:
        table = {key: value for key, value in change.table.items() if key != EXTENDS}
        merge_into(changed, table, partial(_origin_in, merged, change.given))
    return changed


def rebase(merged: Merged, changes: Iterable[ArmChange]) -> Merged:
    """Return a copy of the recipe, based on the recipe that an arm extends if it extends one.

    That recipe, with its parents, replaces what the oldest file with `[ablation]` extends. What this file sets for all
    arms, its children and the command line are merged into it as before.
    """
    for change in changes:
        if EXTENDS in change.table:
            assert merged.path is not None  # arms are set in a file
            given = f"{change.given}.{EXTENDS}"
            folder, where = merged.origins[given].folder, merged.place(given)
            parents = chain(parent_of(folder, change.table[EXTENDS], where), where)
            own = itertools.dropwhile(lambda file: TABLE not in file.tables, chain(merged.path))
            return replace(stacked(merged.path, [*parents, *own], merged.overrides), planned=merged.planned)
    return copy.deepcopy(merged)


def _origin_in(merged: Merged, table: str, key: str) -> Origin:
    """Return the origin of a key of a table of `[ablation]`, or that of the closest table around it."""
    key = f"{table}.{key}"
    while key not in merged.origins:
        key = key.rpartition(".")[0]
    return replace(merged.origins[key], inherited=False)
