"""Find the caveats of an ablation: each has a kind, arms and numbers. Torch-free.

Its sentence is the macro of its kind in `templates/sentences.j2`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from statistics import mean
from typing import Any, TypeVar

from sddit.ablations.analysis.diagnostics import Logs, diagnoses, environments
from sddit.ablations.analysis.results import AblationResults
from sddit.ablations.analysis.statistics import MIN_SEEDS
from sddit.ablations.analysis.table import metric_title
from sddit.ablations.planning.records import ArmRecord
from sddit.evaluation.monitors import RATIO
from sddit.formatting import format_si
from sddit.reports.ablation.phrases import format_arms, format_ratio
from sddit.reports.rendering import sentence
from sddit.reports.run.score_table import SCORES

K = TypeVar("K")
T = TypeVar("T")

TOLERANCE = 0.02  # relative difference up to which amounts count as equal: runs last a whole number of steps
SIZE_TOLERANCE = 0.001  # the same for parameters: a few dozen are irrelevant
TIME_TOLERANCE = 0.1  # the same for measured seconds
OF_ALL_SAMPLES = [column.field for column in SCORES if column.of_all]
"""Figures of all samples; the others are of n, the largest number at which there are as many held-out images."""
SAME_EVERYWHERE = ("python", "packages.", "system", "device", "threads")
"""Keys of environment.json that no arm changes."""


@dataclass(frozen=True, slots=True)
class Caveat:
    """Something that may mislead a reader."""

    kind: str  # such as "unequal compute"
    numbers: Mapping[str, Any] = field(default_factory=dict)  # what the sentence of this kind contains
    arms: tuple[str, ...] = ()  # concerned arms; empty: the ablation itself
    doubt: bool = False  # whether it makes the results of these arms doubtful

    @property
    def text(self) -> str:
        """The caveat in a sentence, as plain text."""
        return sentence(self.kind.replace(" ", "_"), **self.numbers)


def caveats(results: AblationResults, logs: Logs) -> list[Caveat]:
    """Return all caveats, the most serious first."""
    rules = (
        target_leaks(results),
        losses_without_gradient(results),
        recipe_warnings(results),
        alarms(results, logs),
        unchecked_leaks(results),
        failed_runs(results),
        few_seeds(results),
        runs_of_baseline(results),
        unequal(results, "unequal size", lambda arm: arm.sampled_parameters, SIZE_TOLERANCE),
        unequal_budgets(results),
        shared_clipping(results),
        different_n(results),
        different_machines(results),
    )
    return [caveat for rule in rules for caveat in rule]


def target_leaks(results: AblationResults) -> Iterator[Caveat]:
    """Yield arms whose loss can see the clean image."""
    for arm in results.plan.arms:
        for path in arm.leaks.found if arm.leaks else ():
            yield Caveat("the target leaks", {"path": path}, (arm.label,), doubt=True)


def losses_without_gradient(results: AblationResults) -> Iterator[Caveat]:
    """Yield a caveat per loss whose gradient on the network was 0 in every measurement of a run."""
    runs = group((loss, run) for run in results.runs for loss in run.without_gradient)
    for loss, found in runs.items():
        arms = group((run.arm, run) for run in found)
        counts = [(label, len(of_arm), len(results.finished_of(label))) for label, of_arm in arms.items()]
        yield Caveat("no gradient", {"loss": loss, "counts": counts}, tuple(arms), doubt=True)


def recipe_warnings(results: AblationResults) -> Iterator[Caveat]:
    """Yield the warnings of the recipes. One that holds for every arm favours none."""
    arms = group((text, arm.label) for arm in results.plan.arms for text in arm.warnings)
    for text, labels in arms.items():
        yield Caveat("the recipe warns", {"warning": text}, tuple(labels), doubt=len(labels) < len(results.plan.arms))


def alarms(results: AblationResults, logs: Logs) -> Iterator[Caveat]:
    """Yield a caveat per loss whose monitors, such as those of a collapse, ended outside their healthy range."""
    found = [one for one in diagnoses(results, logs) if one.alarms]
    known = {(run.arm, run.seed, loss) for run in results.runs for loss in run.without_gradient}
    ratios = [
        one
        for one in found
        if one.key.startswith(RATIO)
        and any((one.arm, seed, one.term) not in known for seed, own in one.verdicts.items() if own in one.alarms)
    ]
    for loss, of_loss in group((one.term, one) for one in ratios).items():
        numbers = {"loss": loss, "found": of_loss, "healthy": of_loss[0].monitor.healthy}
        yield Caveat("gradient out of range", numbers, tuple(one.arm for one in of_loss), doubt=True)
    losses = group((one.term, one) for one in found if not one.key.startswith(RATIO))
    for loss, found in losses.items():
        monitors = group((one.key, one) for one in found).values()
        arms = dict.fromkeys(one.arm for some in monitors for one in some)
        yield Caveat("diagnostics alarm", {"loss": loss, "monitors": monitors}, tuple(arms), doubt=True)


def unchecked_leaks(results: AblationResults) -> Iterator[Caveat]:
    """Yield arms that were not checked for a leak of the target, and why."""
    reasons = group(
        (arm.leaks.unchecked if arm.leaks else "run the command without --only", arm.label) for arm in results.plan.arms
    )
    for reason, labels in reasons.items():
        if reason:
            yield Caveat("leaks unknown", {"reason": reason}, tuple(labels))


def failed_runs(results: AblationResults) -> Iterator[Caveat]:
    """Yield arms with failed runs: the scores are those of the other runs."""
    for arm in results.plan.arms:
        rows = results.of(arm.label)
        if count := sum(row.status == "failed" for row in rows):
            yield Caveat("failed runs", {"count": count, "runs": len(rows)}, (arm.label,))


def few_seeds(results: AblationResults) -> Iterator[Caveat]:
    """Yield the arms with fewer seeds than a verdict needs."""
    finished = {label: len(results.finished_of(label)) for label in results.plan.labels}
    few = group((count, label) for label, count in finished.items() if count < MIN_SEEDS)
    if few:
        counts = [(count, format_arms(results.plan, labels)) for count, labels in few.items()]
        arms = (label for labels in few.values() for label in labels)
        yield Caveat("too few seeds", {"needed": MIN_SEEDS, "counts": counts}, tuple(arms))


def runs_of_baseline(results: AblationResults) -> Iterator[Caveat]:
    """Yield arms that share the runs of their baseline."""
    for arm in results.plan.arms:
        mine, base = ({row.folder for row in results.of(label)} for label in (arm.label, arm.baseline))
        if not arm.is_baseline and mine == base and all(mine):  # published results name no folders
            yield Caveat("the same runs", {}, (arm.label,))


def unequal_budgets(results: AblationResults) -> Iterator[Caveat]:
    """Yield arms that received more or less than their baseline: of the budget, or of compute."""

    def seconds(arm: ArmRecord) -> float | None:
        spent = [row.seconds for row in results.finished_of(arm.label)]
        return mean(spent) if spent else None

    rule = results.plan.budget.rule
    if rule == "time":
        yield from unequal(results, "unequal budget", seconds, TIME_TOLERANCE, rule=rule)
    elif rule == "images":
        yield from unequal(results, "unequal budget", lambda arm: arm.images, TOLERANCE, rule=rule)
    kind = "unequal budget" if rule == "flops" else "unequal compute"
    yield from unequal(results, kind, lambda arm: arm.flops, TOLERANCE, rule=rule)


def shared_clipping(results: AblationResults) -> Iterator[Caveat]:
    """Yield the arms that change losses where the gradients of heads take part in the clipping of the network's."""
    by_label = results.plan.by_label
    arms = [arm for arm in results.plan.arms if arm.shared_clip or by_label[arm.baseline].shared_clip]
    if changed := tuple(arm.label for arm in arms if arm.differing("loss.")):
        yield Caveat("shared clipping", {}, changed)


def unequal(
    results: AblationResults,
    kind: str,
    amount: Callable[[ArmRecord], float | None],
    tolerance: float,
    **numbers: str,
) -> Iterator[Caveat]:
    """Yield a caveat for the arms whose amount differs from that of their baseline."""
    ratios: list[tuple[tuple[str, ...], str]] = []
    for arm in results.plan.arms:
        mine, base = amount(arm), amount(results.plan.arm(arm.baseline))
        if mine and base and not math.isclose(mine, base, rel_tol=tolerance):
            baseline = arm.baseline if kind == "unequal budget" else ""  # other sentences do not name it
            ratios.append(((format_ratio(mine, base), format_si(mine), format_si(base), baseline), arm.label))
    if ratios:
        each = [(format_arms(results.plan, labels), *texts) for texts, labels in group(ratios).items()]
        yield Caveat(kind, {"ratios": each, **numbers}, tuple(label for _, label in ratios))


def different_n(results: AblationResults) -> Iterator[Caveat]:
    """Yield metrics that were measured on different numbers of images: distances fall with that number."""
    for metric in results.plan.metrics:
        extractor, _, figure = metric.rpartition(".")
        key = f"{extractor}.{'samples' if figure in OF_ALL_SAMPLES else 'n'}"
        numbers = group(
            (int(row.scores[key]), row.arm) for row in results.runs if metric in row.scores and key in row.scores
        )
        if len(numbers) > 1:
            each = {n: dict.fromkeys(labels) for n, labels in numbers.items()}
            arms = dict.fromkeys(label for labels in each.values() for label in labels)
            yield Caveat("different n", {"metric": metric_title(metric), "numbers": each}, tuple(arms))


def different_machines(results: AblationResults) -> Iterator[Caveat]:
    """Yield versions, devices and numbers of threads that differ between runs."""
    for key, values in environments(results).items():
        if key.startswith(SAME_EVERYWHERE) and len(values) > 1:
            yield Caveat("different machines", {"key": key, "values": values})


def group(pairs: Iterable[tuple[K, T]]) -> dict[K, list[T]]:
    """Return the values of each key, in order of first appearance."""
    grouped: dict[K, list[T]] = {}
    for key, value in pairs:
        grouped.setdefault(key, []).append(value)
    return grouped
