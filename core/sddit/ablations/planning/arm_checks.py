"""Check labels, baseline, metrics, targets and seeds of an ablation against its resolved arms. No torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

from sddit.ablations.planning.ablation_settings import AblationSettings
from sddit.ablations.planning.arm_problems import with_arms
from sddit.errors import Problem, one_of
from sddit.interfaces.metric_names import EXTRACTOR_METRICS, KNOWN_METRICS
from sddit.recipes.merge import Merged, leaves
from sddit.recipes.parsing import MAX_INTEGER, quoted
from sddit.recipes.recipe import Recipe
from sddit.recipes.resolve import ABLATION as TABLE

Recipes = Mapping[str, Recipe]
"""Resolved recipes of the valid arms, by label."""


def unknown_baseline(settings: AblationSettings, labels: Iterable[str], merged: Merged) -> Iterator[Problem]:
    """Yield a problem if `baseline` names no arm."""
    known = dict.fromkeys([*settings.arms, *labels])
    if settings.baseline and settings.baseline not in known:
        what, where = f"no arm {settings.baseline!r} to compare with", merged.place(f"{TABLE}.baseline")
        yield Problem("SD-R150", what, where, quoted(settings.baseline), one_of(settings.baseline, known))


def repeated_labels(labels: Iterable[str], merged: Merged) -> Iterator[Problem]:
    """Yield a problem for each label that several arms have."""
    for label, count in Counter(labels).items():
        if count > 1:
            what, fix = f"{count} arms are called {label!r}", "list each value once"
            yield Problem("SD-R150", what, merged.place(TABLE), fix=fix)


def metric_problems(metrics: Sequence[str], recipes: Recipes, merged: Merged) -> Iterator[Problem]:
    """Yield a problem for each metric that is repeated or that some arm does not measure.

    If no arm is valid, every known metric counts as measured.
    """
    where = merged.place(f"{TABLE}.metrics")
    for metric, count in Counter(metrics).items():
        if count > 1:
            what = f"metric {metric!r} is listed twice"
            yield Problem("SD-R150", what, where, quoted(list(metrics)), "each metric once")
        extractor, _, figure = metric.rpartition(".")
        lacking = [label for label, recipe in recipes.items() if not measures(recipe, extractor, figure)]
        if figure not in KNOWN_METRICS or (recipes and len(lacking) == len(recipes)):
            yield _unknown_metric(metric, recipes, where)
        elif lacking:
            problem = Problem("SD-R150", f"metric {metric!r} is not measured", where, fix="evaluate.features")
            yield with_arms(problem, lacking)


def _unknown_metric(metric: str, recipes: Recipes, where: str) -> Problem:
    """Return the problem of a metric that no arm measures, with the metrics of the first arm."""
    extractor, _, figure = metric.rpartition(".")
    what = f"no metric {metric!r}"
    if not recipes:
        return Problem("SD-R150", what, where, metric, f"a figure that is {one_of(figure, KNOWN_METRICS)}")
    recipe = next(iter(recipes.values()))
    known = [f"{name}.{one}" for name in recipe.features for one in KNOWN_METRICS if measures(recipe, name, one)]
    if not known:
        fix = "name extractors in evaluate.features: sddit-run show features"
        return Problem("SD-R150", what, where, metric, fix=fix)
    fix = f"name an extractor that measures {figure} in evaluate.features: sddit-run show features"
    misspelled = extractor not in recipe.features or figure not in KNOWN_METRICS
    expect = one_of(metric if misspelled else "", known)  # no nearest name for one that is spelled correctly
    return Problem("SD-R150", what, where, metric, expect, fix if figure in EXTRACTOR_METRICS else "")


def measures(recipe: Recipe, extractor: str, figure: str) -> bool:
    """Return whether a run of the recipe measures a figure: a common one, or one of the extractor's own."""
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

    def measured(metric: str) -> bool:
        extractor, _, figure = metric.rpartition(".")
        if not recipes:
            return figure in KNOWN_METRICS
        return any(measures(recipe, extractor, figure) for recipe in recipes.values())

    misspelled = not all(map(measured, metrics))
    for metric, _ in leaves(settings.targets):
        if metric not in metrics and not (misspelled and measured(metric)):
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
