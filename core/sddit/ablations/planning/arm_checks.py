"""Check labels, baseline, metrics, targets and seeds of an ablation against its resolved arms. No torch.

Each problem is collected once, with the arms in which it occurs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

from sddit.ablations.planning.ablation_settings import AblationSettings
from sddit.data.undecoded import scores_of_latents
from sddit.errors import Problem, SdditError, one_of
from sddit.interfaces.metric_names import EXTRACTOR_METRICS, KNOWN_METRICS
from sddit.recipes.merge import Merged, leaves
from sddit.recipes.parsing import MAX_INTEGER, quoted
from sddit.recipes.recipe import Recipe
from sddit.recipes.resolve import ABLATION as TABLE

NO_ARM = ""  # label of the recipe without changes, and of the ablation itself
MAX_NAME_LENGTH = 60  # characters of an arm's name, which is a column of each table and part of the folder of each run

Recipes = Mapping[str, Recipe]
"""Resolved recipes of the valid arms, by label."""


class ArmProblems:
    """Problems in order of appearance, each with the labels of its arms."""

    def __init__(self) -> None:
        self._labels: dict[Problem, list[str]] = {}

    def add(self, problems: Iterable[Problem], label: str = NO_ARM) -> None:
        """Add problems of one arm, or of the ablation itself."""
        for problem in problems:
            labels = self._labels.setdefault(problem, [])
            if label not in labels:
                labels.append(label)

    @contextmanager
    def collecting(self, label: str = NO_ARM) -> Iterator[None]:
        """Add the problems that are raised in the block."""
        try:
            yield
        except SdditError as failure:
            self.add(failure.problems, label)

    def __iter__(self) -> Iterator[Problem]:
        """Yield each problem; one that the recipe without changes does not have names its arms."""
        for problem, labels in self._labels.items():
            yield problem if NO_ARM in labels else with_arms(problem, labels)


def with_arms(problem: Problem, labels: Sequence[str]) -> Problem:
    """Return a problem that names its arms."""
    names = ", ".join(repr(label) for label in labels)
    return replace(problem, what=f"{'arm' if len(labels) == 1 else 'arms'} {names}: {problem.what}")


def unknown_baseline(settings: AblationSettings, labels: Iterable[str], merged: Merged) -> Iterator[Problem]:
    """Yield a problem if `baseline` names no arm."""
    known = dict.fromkeys([*settings.arms, *labels])
    if settings.baseline and settings.baseline not in known:
        what, where = f"no arm {settings.baseline!r} to compare with", merged.place(f"{TABLE}.baseline")
        yield Problem("SD-R150", what, where, quoted(settings.baseline), one_of(settings.baseline, known))


def label_problems(settings: AblationSettings, labels: Iterable[str], merged: Merged) -> Iterator[Problem]:
    """Yield a problem for each name of an arm that does not fit into a table, and each label that several arms have."""
    for label in settings.arms:
        if len(label) > MAX_NAME_LENGTH:
            what, where = f"the name of an arm is too long: {quoted(label)}", merged.place(f"{TABLE}.arms.{label}")
            got, expect = f"{len(label)} characters", f"at most {MAX_NAME_LENGTH}"
            yield Problem("SD-R150", what, where, got, expect, "shorten it; `question` has room for more words")
    for label, count in Counter(labels).items():
        if count > 1:
            what, fix = f"{count} arms are called {label!r}", "list each value once"
            yield Problem("SD-R150", what, merged.place(TABLE), fix=fix)


def metric_problems(metrics: Sequence[str], recipes: Recipes, merged: Merged) -> Iterator[Problem]:
    """Yield a problem for each metric that is repeated or that some arm does not measure."""
    where = merged.place(f"{TABLE}.metrics")
    for metric, count in Counter(metrics).items():
        if count > 1:
            what = f"metric {metric!r} is listed twice"
            yield Problem("SD-R150", what, where, quoted(list(metrics)), "each metric once")
        if unscorable := [label for label, recipe in recipes.items() if not recipe.facts.gives_images]:
            fix = "remove it from ablation.metrics; the report compares losses and diagnostics"
            problem = scores_of_latents(where, metric, fix)
            yield problem if len(unscorable) == len(recipes) else with_arms(problem, unscorable)
        elif not is_measured(metric, recipes):
            yield _unknown_metric(metric, recipes, where)
        elif lacking := [label for label, recipe in recipes.items() if not measures(recipe, metric)]:
            problem = Problem("SD-R150", f"metric {metric!r} is not measured", where, fix="evaluate.features")
            yield with_arms(problem, lacking)


def is_measured(metric: str, recipes: Recipes) -> bool:
    """Return whether some arm measures a metric. If no arm is valid, every known metric counts as measured."""
    if not recipes:
        return metric.rpartition(".")[2] in KNOWN_METRICS
    return any(measures(recipe, metric) for recipe in recipes.values())


def _unknown_metric(metric: str, recipes: Recipes, where: str) -> Problem:
    """Return the problem of a metric that no arm measures, with the metrics of the first arm."""
    extractor, _, figure = metric.rpartition(".")
    what = f"no metric {metric!r}"
    if not recipes:
        return Problem("SD-R150", what, where, metric, f"a figure that is {one_of(figure, KNOWN_METRICS)}")
    recipe = next(iter(recipes.values()))
    names = (f"{name}.{one}" for name in recipe.features for one in KNOWN_METRICS)
    known = [name for name in names if measures(recipe, name)]
    if not known:
        fix = "name extractors in evaluate.features: sddit-run show features"
        return Problem("SD-R150", what, where, metric, fix=fix)
    fix = f"name an extractor that measures {figure} in evaluate.features: sddit-run show features"
    misspelled = extractor not in recipe.features or figure not in KNOWN_METRICS
    expect = one_of(metric if misspelled else "", known)  # no nearest name for one that is spelled correctly
    return Problem("SD-R150", what, where, metric, expect, fix if figure in EXTRACTOR_METRICS else "")


def measures(recipe: Recipe, metric: str) -> bool:
    """Return whether a run of the recipe measures a metric: a common figure, or one of the extractor's own."""
    extractor, _, figure = metric.rpartition(".")
    chosen = recipe.features.get(extractor)
    if chosen is None or (figure == "class_accuracy" and recipe.facts.num_classes < 2):
        return False
    return figure in KNOWN_METRICS and (figure not in EXTRACTOR_METRICS or figure in chosen.params.own_figures)


def target_problems(
    settings: AblationSettings, metrics: Sequence[str], recipes: Recipes, merged: Merged
) -> Iterator[Problem]:
    """Yield a problem for each target whose metric is not compared.

    If a metric is misspelled, a target of a measured metric is taken for the one that was meant.
    """
    misspelled = not all(is_measured(metric, recipes) for metric in metrics)
    for metric, _ in leaves(settings.targets):
        if metric not in metrics and not (misspelled and is_measured(metric, recipes)):
            what, where = f"target of {metric!r}, which is not a metric of this ablation", f"{TABLE}.targets.{metric}"
            known = one_of(metric, metrics) if metrics else "no metric"
            yield Problem("SD-R150", what, merged.place(where), metric, known)


def seed_problems(settings: AblationSettings, recipes: Recipes, merged: Merged) -> Iterator[Problem]:
    """Yield a problem for repeated seeds, and for each arm whose largest seed is out of range."""
    where = merged.place(f"{TABLE}.seeds")
    if len(set(settings.seeds)) < len(settings.seeds):
        yield Problem("SD-R150", "a seed is listed twice", where, quoted(settings.seeds), "each seed once")
    largest = max(settings.seeds)
    for label, recipe in recipes.items():
        if recipe.seed + largest > MAX_INTEGER:
            what, got = f"arm {label!r}: the seed is out of range", f"{recipe.seed} + {largest}"
            yield Problem("SD-R107", what, where, got, "at most 2^63 - 1")
