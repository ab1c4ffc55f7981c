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

from sddit.ablations.planning.ablation_settings import AblationSettings
from sddit.errors import Problem, SdditError, nearest, one_of, raise_all
from sddit.interfaces.metric_names import EXTRACTOR_METRICS, KNOWN_METRICS
from sddit.plugins.host import Host
from sddit.recipes.checks import check_device
from sddit.recipes.merge import Merged, Origin, chain, lay, leaves, parent_of, stacked
from sddit.recipes.parsing import MAX_INTEGER, quoted
from sddit.recipes.recipe import Recipe
from sddit.recipes.resolve import ABLATION as TABLE
from sddit.recipes.resolve import resolve_merged
from sddit.recipes.validation import validated
from sddit.value_schedules import Ramp

NOT_IN_ARMS = {
    "ablation": "an ablation has no further one inside",
    "extends": "a parent stands at the top of the file, or in an arm",
    "plugins": "plugins stand at the top of the file, for all arms",
}
GROUND = "extends"  # the one of them that an arm may have: the recipe that it is made of
GRID, PAIRS = f"{TABLE}.grid", f"{TABLE}.pairs"
AXES = {"arms", "grid", "pairs"}
MOST_ARMS = 1000  # the lists of a grid multiply
LONGEST_NAME = 60  # characters of an arm's name: each table has it in a column, and each run in the name of its folder
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


def expand(merged: Merged, *, host: Host | None = None, device: str = "") -> Ablation:
    """The arms of an ablation.

    Args:
        host: the plugins to choose from; the process's own by default.
        device: the type (`cpu`, `cuda`) on which every arm must train; empty: not asked.

    Raises:
        SdditError: with every problem of `[ablation]` and of every arm, each naming its arms.
    """
    problems: dict[Problem, list[str]] = {}  # by what is wrong, the arms in which it is
    settings, unread = _settings(merged, problems)
    base = None
    with _noting(problems, ""):
        base = resolve_merged(merged, host=host)
    sound = _sound(settings, merged, problems)
    points = [(label_of(changes), changes) for changes in itertools.product(*axes(sound))]
    labels = [label for label, _ in points]
    arms: list[Arm] = []
    for label, changes in points:
        with _noting(problems, label):
            arms.append(_arm(changes, labels, settings, merged, host))
            raise_all(check_device(arms[-1].recipe, device) if device else [])
    metrics = settings.metrics or tuple(f"{label}.fd" for label in (base.features if base else ()))
    _note(problems, _names(settings, merged))
    _note(problems, _labels(labels, merged))
    if len(crossed(sound)) == len(crossed(settings)) and not unread & AXES:  # else the points are not known
        _note(problems, _unknown_baseline(settings, labels, merged))
    if "metrics" not in unread:
        _note(problems, _metrics(metrics, arms, merged))
    if "metrics" not in unread and (base or settings.metrics):
        _note(problems, _targets(settings, metrics, arms, merged))
    _note(problems, _seeds(settings, arms, merged))
    raise_all(naming_arms(problems))
    assert base is not None  # or it has left a problem
    published = Path(merged.absolute(f"{TABLE}.published", settings.published)) if settings.published else None
    return Ablation(settings, base, tuple(arms), metrics, merged.command, published)


def _arm(
    changes: Sequence[Change], labels: Sequence[str], settings: AblationSettings, merged: Merged, host: Host | None
) -> Arm:
    """The arm of some changes, among the labels of all arms."""
    laid = laid_over(merged, changes)
    recipe = resolve_merged(laid, host=host)
    values = {key: value for change in changes for key, value in change.values.items()}
    named = changes[0].label if settings.arms else ""
    return Arm(label_of(changes), values, _baseline(settings, changes, labels), named, recipe, laid)


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
    lists = crossed(settings)
    short = _short_names([key for _, table in lists for key in table])
    arms = [Change(label, table, f"{TABLE}.arms.{label}") for label, table in settings.arms.items()]
    rows = [[_row(given, table, number, short) for number in range(_length(table))] for given, table in lists]
    return [axis for axis in (arms, *rows) if axis]


def crossed(settings: AblationSettings) -> list[tuple[str, dict[str, Any]]]:
    """(the table it stands in, lists by dotted key) of each key of the grid, and of each table of pairs."""
    grid = [(GRID, {key: values}) for key, values in leaves(settings.grid)]
    return [*grid, *((PAIRS, dict(leaves(table))) for table in settings.pairs)]


def _row(given: str, table: Mapping[str, Sequence[Any]], number: int, short: Mapping[str, str]) -> Change:
    """The values of one place in each list of an axis."""
    row: dict[str, Any] = {}
    for key, values in table.items():
        _put(row, key, values[number])
    label = " ".join(f"{short[key]}={_text(values[number])}" for key, values in table.items())
    return Change(label, row, given)


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
        _note(problems, failure.problems, label)


def _note(problems: dict[Problem, list[str]], found: Iterable[Problem], label: str = "") -> None:
    """Problems of an arm, or of the ablation as a whole, are noted; each once."""
    for problem in found:
        labels = problems.setdefault(problem, [])
        if label not in labels:
            labels.append(label)


# --------------------------------------------------------------------------------------------------------------------
# What cannot be
# --------------------------------------------------------------------------------------------------------------------


def _settings(merged: Merged, problems: dict[Problem, list[str]]) -> tuple[AblationSettings, set[str]]:
    """`[ablation]` as far as it can be read, and the keys that cannot be, as they were meant: what is wrong is noted."""
    sound: dict[str, Any] = {}
    unread: set[str] = set()
    for key, piece in _pieces(merged):
        try:
            _read(piece, merged)
        except SdditError as failure:
            _note(problems, failure.problems)
            unread.add(key if key in AblationSettings.model_fields else nearest(key, AblationSettings.model_fields))
        else:
            sound[key] = {**sound[key], **piece[key]} if key == "arms" and key in sound else piece[key]
    return _read(sound, merged), unread


def _read(table: Mapping[str, Any], merged: Merged) -> AblationSettings:
    return validated(AblationSettings, table, table=TABLE, where=merged.place, fix="sddit-run show ablation")


def _pieces(merged: Merged) -> Iterator[tuple[str, dict[str, Any]]]:
    """(key, a table of it) of what can be read alone: each key of `[ablation]`, and each of its arms."""
    given = merged.tables[TABLE]
    if not isinstance(given, dict):
        problem = Problem("SD-R103", f"{TABLE!r} must be a table", merged.place(TABLE), quoted(given), f"[{TABLE}]")
        raise SdditError(problem)
    for key, value in given.items():
        if key == "arms" and isinstance(value, dict):
            yield from ((key, {key: {label: table}}) for label, table in value.items())
        else:
            yield key, {key: value}


def _sound(settings: AblationSettings, merged: Merged, problems: dict[Problem, list[str]]) -> AblationSettings:
    """The ablation without what cannot be tried: keys that no arm may have, axes that cannot be crossed. They are noted."""
    axes = _crossable(settings, merged, problems)
    grid: dict[str, Any] = {}
    for table in (table for given, table in axes if given == GRID):
        for key, values in table.items():
            _put(grid, key, values)
    pairs = tuple(table for given, table in axes if given == PAIRS)
    arms = _allowed(settings, merged, problems)
    return settings.model_copy(update={"arms": arms, "grid": grid, "pairs": pairs})


def _allowed(settings: AblationSettings, merged: Merged, problems: dict[Problem, list[str]]) -> dict[str, Any]:
    """The tables of the arms, without the keys that belong to the ablation as a whole."""
    arms: dict[str, dict[str, Any]] = {label: {} for label in settings.arms}
    for label, table in settings.arms.items():
        for key, value in leaves(table):
            if wrong := list(_own_business(f"{TABLE}.arms.{label}", [key], merged)):
                _note(problems, wrong)
            else:
                _put(arms[label], key, value)
    return arms


def _crossable(
    settings: AblationSettings, merged: Merged, problems: dict[Problem, list[str]]
) -> list[tuple[str, dict[str, Any]]]:
    """The axes that can be crossed, as `crossed` gives them; none where there would be too many arms."""
    kept: list[tuple[str, dict[str, Any]]] = []
    for axis in crossed(settings):
        wrong = [*_lists(*axis, merged), *_own_business(*axis, merged), *_set_twice(axis, kept, settings, merged)]
        _note(problems, wrong)
        if not wrong:
            kept.append(axis)
    arms = max(1, len(settings.arms)) * math.prod(_length(table) for _, table in kept)
    if arms <= MOST_ARMS:
        return kept
    what, fix = "an ablation of so many arms is a mistake", "shorten the lists of [ablation.grid]"
    _note(problems, [Problem("SD-R150", what, merged.place(TABLE), f"{arms:,} arms", f"at most {MOST_ARMS:,}", fix)])
    return []


def _lists(given: str, table: Mapping[str, Any], merged: Merged) -> Iterator[Problem]:
    """An axis holds lists of values, of one length."""
    if not table:
        yield Problem("SD-R150", "a table of pairs is empty", merged.place(given), fix="give it lists, or remove it")
    lengths = {key: len(values) for key, values in table.items() if isinstance(values, list) and values}
    for key in [key for key in table if key not in lengths]:
        where, got = merged.place(f"{given}.{key}"), f"{key} = {quoted(table[key])}"
        yield Problem(
            "SD-R150",
            f"{key!r} of [{given}] needs a list of values",
            where,
            got,
            "one value or more in [ ]",
            f"{key} = [...]",
        )
    if len(set(lengths.values())) > 1:
        got = ", ".join(f"{count} of {key}" for key, count in lengths.items())
        where = merged.place(given)
        yield Problem("SD-R150", "paired lists differ in length", where, got, "as many values of each key")


def _set_twice(
    axis: tuple[str, Mapping[str, Any]],
    earlier: Iterable[tuple[str, Mapping[str, Any]]],
    settings: AblationSettings,
    merged: Merged,
) -> Iterator[Problem]:
    """No key of an axis is one of an earlier axis or of an arm."""
    given, keys = axis
    for other, others in earlier:
        for key in _meeting(keys, list(others)):
            what, got = f"{key!r} is crossed with itself", f"[{other}] and [{given}]"
            yield Problem("SD-R150", what, merged.place(f"{given}.{key}"), got, "one list of it")
    for label, table in settings.arms.items():
        for key in _meeting(keys, list(dict(leaves(table)))):
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


def _unknown_baseline(settings: AblationSettings, labels: Iterable[str], merged: Merged) -> Iterator[Problem]:
    known = dict.fromkeys([*settings.arms, *labels])
    if settings.baseline and settings.baseline not in known:
        where, got = merged.place(f"{TABLE}.baseline"), quoted(settings.baseline)
        yield Problem(
            "SD-R150", f"no arm {settings.baseline!r} to compare with", where, got, one_of(settings.baseline, known)
        )


def _names(settings: AblationSettings, merged: Merged) -> Iterator[Problem]:
    """The names of arms fit into a table."""
    for label in settings.arms:
        if len(label) > LONGEST_NAME:
            what, where = f"the name of an arm is too long: {quoted(label)}", merged.place(f"{TABLE}.arms.{label}")
            got, expect = f"{len(label)} characters", f"at most {LONGEST_NAME}"
            yield Problem("SD-R150", what, where, got, expect, "shorten it; `question` has room for more words")


def _labels(labels: Iterable[str], merged: Merged) -> Iterator[Problem]:
    for label, count in Counter(labels).items():
        if count > 1:
            yield Problem(
                "SD-R150", f"{count} arms are called {label!r}", merged.place(TABLE), fix="give each value once"
            )


def _metrics(metrics: Sequence[str], arms: Sequence[Arm], merged: Merged) -> Iterator[Problem]:
    """Every metric is a figure by an extractor that every arm has. Without an arm that is sound, every figure is known."""
    where = merged.place(f"{TABLE}.metrics")
    for metric, count in Counter(metrics).items():
        if count > 1:
            yield Problem(
                "SD-R150", f"metric {metric!r} is given twice", where, quoted(list(metrics)), "each metric once"
            )
        extractor, _, figure = metric.rpartition(".")
        lacking = [arm.label for arm in arms if not measures(arm.recipe, extractor, figure)]
        if figure not in KNOWN_METRICS or (arms and len(lacking) == len(arms)):
            yield _no_metric(metric, arms, where)
        elif lacking:
            yield from naming_arms(
                {Problem("SD-R150", f"metric {metric!r} is not measured", where, fix="evaluate.features"): lacking}
            )


def _no_metric(metric: str, arms: Sequence[Arm], where: str) -> Problem:
    """A metric that no arm measures, with those that the first one does."""
    extractor, _, figure = metric.rpartition(".")
    what = f"no metric {metric!r}"
    if not arms:
        return Problem("SD-R150", what, where, metric, f"a figure that is {one_of(figure, KNOWN_METRICS)}")
    recipe = arms[0].recipe
    known = [
        f"{name}.{figure}" for name in recipe.features for figure in KNOWN_METRICS if measures(recipe, name, figure)
    ]
    if not known:
        return Problem(
            "SD-R150", what, where, metric, fix="name extractors in evaluate.features: sddit-run show features"
        )
    fix = f"name an extractor that measures {figure} in evaluate.features: sddit-run show features"
    misspelt = extractor not in recipe.features or figure not in KNOWN_METRICS
    expect = one_of(metric if misspelt else "", known)  # nothing was meant but what it says
    return Problem("SD-R150", what, where, metric, expect, fix if figure in EXTRACTOR_METRICS else "")


def measures(recipe: Recipe, extractor: str, figure: str) -> bool:
    """Whether a run of the recipe measures a figure: a common one, or one of the extractor's own."""
    chosen = recipe.features.get(extractor)
    if chosen is None or (figure == "class_accuracy" and recipe.facts.num_classes < 2):
        return False
    return figure in KNOWN_METRICS and (figure not in EXTRACTOR_METRICS or figure in chosen.params.own_figures)


def _targets(
    settings: AblationSettings, metrics: Sequence[str], arms: Sequence[Arm], merged: Merged
) -> Iterator[Problem]:
    """A target is of a metric that is compared. Where a metric is misspelt, one that is measured is what was meant by it."""

    def measured(metric: str) -> bool:
        extractor, _, figure = metric.rpartition(".")
        return any(measures(arm.recipe, extractor, figure) for arm in arms) if arms else figure in KNOWN_METRICS

    misspelt = not all(map(measured, metrics))
    for metric, _ in leaves(settings.targets):
        if metric not in metrics and not (misspelt and measured(metric)):
            what, where = f"a target of {metric!r}, which is no metric of this ablation", f"{TABLE}.targets.{metric}"
            known = one_of(metric, metrics) if metrics else "no metric"
            yield Problem("SD-R150", what, merged.place(where), metric, known)


def _seeds(settings: AblationSettings, arms: Sequence[Arm], merged: Merged) -> Iterator[Problem]:
    if len(set(settings.seeds)) < len(settings.seeds):
        got = quoted(settings.seeds)
        yield Problem("SD-R150", "a seed is given twice", merged.place(f"{TABLE}.seeds"), got, "each seed once")
    for arm in arms:
        if arm.recipe.seed + max(settings.seeds) > MAX_INTEGER:
            what, where = f"arm {arm.label!r}: the seed is out of range", merged.place(f"{TABLE}.seeds")
            yield Problem("SD-R107", what, where, f"{arm.recipe.seed} + {max(settings.seeds)}", "at most 2^63 - 1")
