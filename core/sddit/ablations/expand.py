"""From `[ablation]` to its arms: every arm a whole recipe, resolved and checked before the first run. No torch.

Axes are crossed: the named arms, each key of the grid, each table of pairs. What stands in an arm is laid over the recipe
as a file would be: a table whose `name` changes is replaced, `loss.x = false` removes one. With `extends`, another recipe
takes the place of the one that the ablation extends: under what the ablation says for all arms.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sddit.ablations.settings import AblationSettings
from sddit.errors import Problem, SdditError, one_of, raise_all
from sddit.evaluation.figures import FIGURES, OWN
from sddit.plugins import Host
from sddit.recipes.merge import Merged, Origin, chain, lay, leaves, parent_of, stacked
from sddit.recipes.recipe import Recipe
from sddit.recipes.resolve import ABLATION as TABLE
from sddit.recipes.resolve import resolve_merged
from sddit.recipes.source import MAX_INTEGER, quoted
from sddit.recipes.translate import validated
from sddit.values import Ramp

NOT_IN_ARMS = {
    "ablation": "an ablation has no further one inside",
    "extends": "a parent stands at the top of the file, or in an arm",
    "plugins": "plugins stand at the top of the file, for all arms",
}
GROUND = "extends"  # the one of them that an arm may have: the recipe that it is made of
MOST_ARMS = 1000  # the lists of a grid multiply
UNIQUE_TAIL = 2  # parts of a dotted key that tell `loss.a.weight` from `loss.b.weight`, and say what `lr.start` starts


@dataclass(frozen=True, slots=True)
class Change:
    """One value of one axis: a named arm, a value of the grid, a row of paired values."""

    label: str
    table: Mapping[str, Any]  # laid over the recipe
    given: str  # the dotted key of the table it stands in: `ablation.arms.masked`

    @property
    def values(self) -> dict[str, Any]:
        """The values by dotted key."""
        return dict(leaves(self.table))


@dataclass(frozen=True, slots=True)
class Arm:
    """The recipe with the changes of one arm and one point of the grid, not yet cut to the budget."""

    label: str
    changes: Mapping[str, Any]  # dotted key -> value
    baseline: str  # label of the arm it is compared with
    named: str  # the arm of [ablation.arms] that it is a point of; empty where there is none
    recipe: Recipe
    merged: Merged = field(repr=False)  # its layers, from which it is resolved at another length


@dataclass(frozen=True, slots=True)
class Ablation:
    """An ablation whose arms are checked."""

    settings: AblationSettings
    base: Recipe  # without changes: its length is the budget
    arms: tuple[Arm, ...]
    metrics: tuple[str, ...]  # "classifier.fd"
    command: str = ""  # what to type for it
    published: Path | None = None  # the folder of published results to compare with


def is_ablation(merged: Merged) -> bool:
    """Whether a recipe has `[ablation]`."""
    return TABLE in merged.tables


def expand(merged: Merged, *, host: Host | None = None) -> Ablation:
    """The arms of an ablation.

    Raises:
        SdditError: with every problem of every arm, each naming its arms.
    """
    settings = validated(
        AblationSettings, _table(merged), table=TABLE, where=merged.place, fix="sddit-run show ablation"
    )
    problems: dict[Problem, list[str]] = {}  # by what is wrong, the arms in which it is
    with _noting(problems, ""):
        base = resolve_merged(merged, host=host)
    if badly_put := list(_badly_put(settings, merged)):
        raise_all([*problems, *badly_put])  # a misspelt [ablation.grid] is both
    points = [(label_of(changes), changes) for changes in itertools.product(*axes(settings))]
    arms = []
    for label, changes in points:
        with _noting(problems, label):
            laid = laid_over(merged, changes)
            recipe = resolve_merged(laid, host=host)
            values = {key: value for change in changes for key, value in change.values.items()}
            against = _baseline(settings, changes, [label for label, _ in points])
            named = changes[0].label if settings.arms else ""
            arms.append(Arm(label, values, against, named, recipe, laid))
    raise_all(naming_arms(problems))
    metrics = settings.metrics or tuple(f"{label}.fd" for label in base.features)
    raise_all(
        [
            *_labels(points, merged),
            *_metrics(metrics, arms, merged),
            *_targets(settings, metrics, merged),
            *_seeds(settings, arms, merged),
        ]
    )
    published = Path(merged.absolute(f"{TABLE}.published", settings.published)) if settings.published else None
    return Ablation(settings, base, tuple(arms), metrics, merged.command, published)


def naming_arms(problems: Mapping[Problem, Sequence[str]]) -> Iterator[Problem]:
    """Each problem with the arms in which it is; one of the recipe without changes, whose label is empty, stands as it is."""
    for problem, labels in problems.items():
        if "" in labels:
            yield problem
            continue
        names = ", ".join(repr(label) for label in labels)
        yield replace(problem, what=f"{'arm' if len(labels) == 1 else 'arms'} {names}: {problem.what}")


# --------------------------------------------------------------------------------------------------------------------
# Axes
# --------------------------------------------------------------------------------------------------------------------


def axes(settings: AblationSettings) -> list[list[Change]]:
    """What is crossed, in the order in which it is written: the arms, the keys of the grid, the tables of pairs."""
    lists = [dict(leaves(settings.grid)), *(dict(leaves(table)) for table in settings.pairs)]
    short = _short_names([key for table in lists for key in table])
    arms = [Change(label, table, f"{TABLE}.arms.{label}") for label, table in settings.arms.items()]
    grid = [
        [Change(f"{short[key]}={_text(value)}", nested(key, value), f"{TABLE}.grid") for value in values]
        for key, values in lists[0].items()
    ]
    pairs = [[_row(table, number, short) for number in range(_length(table))] for table in lists[1:]]
    return [axis for axis in (arms, *grid, *pairs) if axis]


def _row(table: Mapping[str, Sequence[Any]], number: int, short: Mapping[str, str]) -> Change:
    """The values of one place in each list of a table of pairs."""
    row: dict[str, Any] = {}
    for key, values in table.items():
        _put(row, key, values[number])
    label = " ".join(f"{short[key]}={_text(values[number])}" for key, values in table.items())
    return Change(label, row, f"{TABLE}.pairs")


def _length(table: Mapping[str, Sequence[Any]]) -> int:
    return len(next(iter(table.values())))


def nested(key: str, value: Any) -> dict[str, Any]:
    """`a.b`, 1 as {"a": {"b": 1}}."""
    table: dict[str, Any] = {}
    _put(table, key, value)
    return table


def _put(table: dict[str, Any], key: str, value: Any) -> None:
    *around, last = key.split(".")
    for name in around:
        table = table.setdefault(name, {})
    table[last] = value


def _short_names(keys: Sequence[str]) -> dict[str, str]:
    """The last part of each key, or its last two where others end alike and where it is `start` or `end` of a schedule."""
    tails = Counter(key.rpartition(".")[2] for key in keys)

    def short(key: str) -> str:
        tail = key.rpartition(".")[2]
        alone = tails[tail] == 1 and tail not in Ramp.model_fields
        return tail if alone else ".".join(key.split(".")[-UNIQUE_TAIL:])

    return {key: short(key) for key in keys}


def _text(value: Any) -> str:
    return value if isinstance(value, str) else quoted(value)


def label_of(changes: Iterable[Change]) -> str:
    """`sd_dit mask_ratio=0.1`; `base` where nothing is crossed."""
    return " ".join(change.label for change in changes) or "base"


def _baseline(settings: AblationSettings, changes: Sequence[Change], labels: Sequence[str]) -> str:
    """What an arm is compared with: the arm that `baseline` names, or the named arm at the same point of the grid."""
    if settings.baseline in labels:
        return settings.baseline
    if not settings.arms:
        return labels[0]
    named = settings.baseline or next(iter(settings.arms))
    return " ".join([named, *(change.label for change in changes[1:])])


# --------------------------------------------------------------------------------------------------------------------
# Arms as recipes
# --------------------------------------------------------------------------------------------------------------------


def laid_over(merged: Merged, changes: Iterable[Change]) -> Merged:
    """The recipe with changes; what they do not say counts as inherited."""
    laid = grounded(merged, changes)
    del laid.tables[TABLE]
    laid.origins = {key: replace(origin, inherited=True) for key, origin in laid.origins.items()}
    for change in changes:
        table = {key: value for key, value in change.table.items() if key != GROUND}
        lay(laid, table, _origins_in(merged, change.given))
    return laid


def grounded(merged: Merged, changes: Iterable[Change]) -> Merged:
    """A copy of the recipe, on the ground of the arm that `extends` another.

    That recipe, with its parents, takes the place of what the oldest file with `[ablation]` extends. What this file says for
    all arms, its children and the command line are laid over it as before.
    """
    for change in changes:
        if GROUND in change.table:
            assert merged.path is not None  # the arms of a file
            given = f"{change.given}.{GROUND}"
            folder, where = merged.origins[given].folder, merged.place(given)
            ground = chain(parent_of(folder, change.table[GROUND], where), where)
            own = itertools.dropwhile(lambda file: TABLE not in file.tables, chain(merged.path))
            return stacked(merged.path, [*ground, *own], merged.overrides)
    return copy.deepcopy(merged)


def _origins_in(merged: Merged, table: str) -> Callable[[str], Origin]:
    """Where the keys of a table of `[ablation]` were given; for one that is no place of its own, the table around it."""

    def origin(key: str) -> Origin:
        key = f"{table}.{key}"
        while key not in merged.origins:
            key = key.rpartition(".")[0]
        return replace(merged.origins[key], inherited=False)

    return origin


@contextmanager
def _noting(problems: dict[Problem, list[str]], label: str) -> Iterator[None]:
    """What is wrong with the recipe of an arm is noted under its label."""
    try:
        yield
    except SdditError as failure:
        for problem in failure.problems:
            problems.setdefault(problem, []).append(label)


# --------------------------------------------------------------------------------------------------------------------
# What cannot be
# --------------------------------------------------------------------------------------------------------------------


def _table(merged: Merged) -> dict[str, Any]:
    given = merged.tables[TABLE]
    if not isinstance(given, dict):
        problem = Problem("SD-R103", f"{TABLE!r} must be a table", merged.place(TABLE), quoted(given), f"[{TABLE}]")
        raise SdditError(problem)
    return given


def _badly_put(settings: AblationSettings, merged: Merged) -> Iterator[Problem]:
    """What is wrong with the axes as they are written."""
    if len(set(settings.seeds)) < len(settings.seeds):
        got = quoted(settings.seeds)
        yield Problem("SD-R150", "a seed is given twice", merged.place(f"{TABLE}.seeds"), got, "each seed once")
    lists = [(f"{TABLE}.grid", settings.grid), *((f"{TABLE}.pairs", table) for table in settings.pairs)]
    faults = [fault for given, table in lists for fault in _lists(given, table, merged)]
    if faults:
        yield from faults
    elif (arms := math.prod(len(values) for _, values in leaves(settings.grid))) > MOST_ARMS:
        what, fix = "an ablation of so many arms is a mistake", "shorten the lists of [ablation.grid]"
        yield Problem("SD-R150", what, merged.place(TABLE), f"{arms:,} arms", f"at most {MOST_ARMS:,}", fix)
    elif unequal := list(_pairs(settings, merged)):
        yield from unequal  # which have no places to go through
    else:
        yield from _keys(settings, merged)
        yield from _unknown_baseline(settings, merged)


def _lists(given: str, table: Mapping[str, Any], merged: Merged) -> Iterator[Problem]:
    """The grid and the pairs hold lists of values."""
    if given.endswith("pairs") and not table:
        yield Problem("SD-R150", "a table of pairs is empty", merged.place(given), fix="give it lists, or remove it")
    for key, values in leaves(table):
        if not isinstance(values, list) or not values:
            where, got = merged.place(f"{given}.{key}"), f"{key} = {quoted(values)}"
            yield Problem(
                "SD-R150",
                f"{key!r} of [{given}] needs a list of values",
                where,
                got,
                "one value or more in [ ]",
                f"{key} = [...]",
            )


def _pairs(settings: AblationSettings, merged: Merged) -> Iterator[Problem]:
    """The lists of one table of pairs have one length."""
    for table in settings.pairs:
        lengths = {key: len(values) for key, values in leaves(table)}
        if len(set(lengths.values())) > 1:
            got = ", ".join(f"{count} of {key}" for key, count in lengths.items())
            where = merged.place(f"{TABLE}.pairs")
            yield Problem("SD-R150", "paired lists differ in length", where, got, "as many values of each key")


def _keys(settings: AblationSettings, merged: Merged) -> Iterator[Problem]:
    """No key is set twice over, none is the ablation's own business."""
    arms = {label: list(dict(leaves(table))) for label, table in settings.arms.items()}
    crossed = [(f"{TABLE}.grid", [key]) for key, _ in leaves(settings.grid)]
    crossed += [(f"{TABLE}.pairs", list(dict(leaves(table)))) for table in settings.pairs]
    for given, keys in (*((f"{TABLE}.arms.{label}", keys) for label, keys in arms.items()), *crossed):
        yield from _own_business(given, keys, merged)
    for (given, keys), (other, others) in itertools.combinations(crossed, 2):
        for key in _meeting(keys, others):
            what, got = f"{key!r} is crossed with itself", f"[{given}] and [{other}]"
            yield Problem("SD-R150", what, merged.place(f"{given}.{key}"), got, "one list of it")
    for (label, keys), (given, others) in itertools.product(arms.items(), crossed):
        for key in _meeting(others, keys):
            what = f"{key!r} is set by arm {label!r} and by [{given}], which would undo the arm"
            where = merged.place(f"{given}.{key}")
            yield Problem("SD-R150", what, where, fix=f"set it in the arms or in [{given}]")


def _meeting(keys: Iterable[str], others: Sequence[str]) -> list[str]:
    """The keys that are among others, lie in one of them, or hold one of them."""
    return [k for k in keys if any(k == o or k.startswith(f"{o}.") or o.startswith(f"{k}.") for o in others)]


def _own_business(given: str, keys: Iterable[str], merged: Merged) -> Iterator[Problem]:
    """Keys that belong to the ablation as a whole."""
    for key in keys:
        where, table = merged.place(f"{given}.{key}"), key.partition(".")[0]
        of_arm = given.startswith(f"{TABLE}.arms.")
        if table in NOT_IN_ARMS and not (key == GROUND and of_arm):
            yield Problem("SD-R150", f"{table!r} cannot stand in [{given}]", where, key, fix=NOT_IN_ARMS[table])
        if key == "train.steps":
            what, fix = "the budget decides how long an arm trains", "set train.steps for all arms, in [train]"
            yield Problem("SD-R150", what, where, f"{key} in [{given}]", fix=fix)


def _unknown_baseline(settings: AblationSettings, merged: Merged) -> Iterator[Problem]:
    labels = [label_of(changes) for changes in itertools.product(*axes(settings))]
    known = dict.fromkeys([*settings.arms, *labels])
    if settings.baseline and settings.baseline not in known:
        where, got = merged.place(f"{TABLE}.baseline"), quoted(settings.baseline)
        yield Problem(
            "SD-R150", f"no arm {settings.baseline!r} to compare with", where, got, one_of(settings.baseline, known)
        )


def _labels(points: Sequence[tuple[str, Any]], merged: Merged) -> Iterator[Problem]:
    for label, count in Counter(label for label, _ in points).items():
        if count > 1:
            yield Problem(
                "SD-R150", f"{count} arms are called {label!r}", merged.place(TABLE), fix="give each value once"
            )


def _metrics(metrics: Sequence[str], arms: Sequence[Arm], merged: Merged) -> Iterator[Problem]:
    """Every metric is a figure by an extractor that every arm has."""
    where = merged.place(f"{TABLE}.metrics")
    for metric, count in Counter(metrics).items():
        if count > 1:
            yield Problem(
                "SD-R150", f"metric {metric!r} is given twice", where, quoted(list(metrics)), "each metric once"
            )
        extractor, _, figure = metric.rpartition(".")
        lacking = [arm.label for arm in arms if not measures(arm.recipe, extractor, figure)]
        if figure not in FIGURES or len(lacking) == len(arms):
            features = arms[0].recipe.features
            known = [
                f"{name}.{figure}" for name in features for figure in FIGURES if measures(arms[0].recipe, name, figure)
            ]
            fix = "" if known else "name extractors in evaluate.features: sddit-run show features"
            yield Problem(
                "SD-R150", f"no metric {metric!r}", where, metric, one_of(metric, known) if known else "", fix
            )
        elif lacking:
            yield from naming_arms(
                {Problem("SD-R150", f"metric {metric!r} is not measured", where, fix="evaluate.features"): lacking}
            )


def measures(recipe: Recipe, extractor: str, figure: str) -> bool:
    """Whether a run of the recipe measures a figure: a common one, or one of the extractor's own."""
    chosen = recipe.features.get(extractor)
    return chosen is not None and (figure not in OWN or figure in chosen.params.own_figures)


def _targets(settings: AblationSettings, metrics: Sequence[str], merged: Merged) -> Iterator[Problem]:
    """A target is of a metric that is compared."""
    for metric, _ in leaves(settings.targets):
        if metric not in metrics:
            where, known = merged.place(f"{TABLE}.targets"), one_of(metric, metrics) if metrics else "no metric"
            yield Problem(
                "SD-R150", f"a target of {metric!r}, which is no metric of this ablation", where, metric, known
            )


def _seeds(settings: AblationSettings, arms: Sequence[Arm], merged: Merged) -> Iterator[Problem]:
    for arm in arms:
        if arm.recipe.seed + max(settings.seeds) > MAX_INTEGER:
            what, where = f"arm {arm.label!r}: the seed is out of range", merged.place(f"{TABLE}.seeds")
            yield Problem("SD-R107", what, where, f"{arm.recipe.seed} + {max(settings.seeds)}", "at most 2^63 - 1")
