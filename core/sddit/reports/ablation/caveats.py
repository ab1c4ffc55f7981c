"""Find the caveats of an ablation: each has a kind, arms and numbers. Torch-free.

Its sentence is the macro of its kind in `templates/sentences.j2`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from statistics import mean
from typing import Any, TypeVar

from sddit.ablations.analysis.diagnostics import Diagnosis, Logs, diagnoses, environments
from sddit.ablations.analysis.results import AblationResults
from sddit.ablations.analysis.statistics import MIN_SEEDS
from sddit.ablations.analysis.table import metric_title
from sddit.ablations.planning.records import ArmRecord
from sddit.formatting import format_si
from sddit.reports.ablation.phrases import format_arms, format_ratio
from sddit.reports.sentences import sentence

Amount = Callable[[ArmRecord], float | None]
T = TypeVar("T")

TOLERANCE = 0.02  # relative difference up to which amounts count as equal: runs last a whole number of steps
SIZE_TOLERANCE = 0.001  # the same for parameters: a few dozen are irrelevant
TIME_TOLERANCE = 0.1  # the same for measured seconds
OF_ALL_SAMPLES = ("fd_all", "class_accuracy", "copied")
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
        recipe_warnings(results),
        alarms(results, logs),
        unchecked_leaks(results),
        failed_runs(results),
        few_seeds(results),
        runs_of_baseline(results),
        unequal_sizes(results),
        unequal_budgets(results),
        different_n(results),
        different_machines(results),
    )
    return [caveat for rule in rules for caveat in rule]


def target_leaks(results: AblationResults) -> Iterator[Caveat]:
    """Yield arms whose loss can see the clean image."""
    for arm in results.plan.arms:
        for path in arm.leaks.found if arm.leaks else ():
            yield Caveat("the target leaks", {"path": path}, (arm.label,), doubt=True)


def recipe_warnings(results: AblationResults) -> Iterator[Caveat]:
    """Yield the warnings of the recipes. One that holds for every arm favours none."""
    arms = group((text, arm.label) for arm in results.plan.arms for text in arm.warnings)
    for text, labels in arms.items():
        yield Caveat("the recipe warns", {"warning": text}, tuple(labels), doubt=len(labels) < len(results.plan.arms))


def alarms(results: AblationResults, logs: Logs) -> Iterator[Caveat]:
    """Yield a caveat per loss whose monitors, such as those of a collapse, ended outside their healthy range."""
    losses = group((one.term, one) for one in diagnoses(results, logs) if one.alarms)
    for loss, found in losses.items():
        monitors = [
            (some[0].monitor.title, [alarm(one) for one in some])
            for some in group((one.key, one) for one in found).values()
        ]
        order = [one.arm for some in group((one.key, one) for one in found).values() for one in some]
        yield Caveat("diagnostics alarm", {"loss": loss, "monitors": monitors}, tuple(dict.fromkeys(order)), doubt=True)


def alarm(one: Diagnosis) -> dict[str, Any]:
    """Return the numbers of an alarm in one arm."""
    return {"arm": one.arm, "why": one.alarms[0].why, "count": len(one.alarms), "runs": len(one.verdicts)}


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
    finished = {arm.label: sum(row.status == "finished" for row in results.of(arm.label)) for arm in results.plan.arms}
    few = {label: count for label, count in finished.items() if count < MIN_SEEDS}
    if few:
        labels = group((count, label) for label, count in few.items())
        counts = [(count, format_arms(results.plan, arms)) for count, arms in labels.items()]
        yield Caveat("too few seeds", {"needed": MIN_SEEDS, "counts": counts}, tuple(few))


def runs_of_baseline(results: AblationResults) -> Iterator[Caveat]:
    """Yield arms that share the runs of their baseline."""
    for arm in results.plan.arms:
        mine, base = ({row.folder for row in results.of(label)} for label in (arm.label, arm.baseline))
        if not arm.is_baseline and mine == base and all(mine):  # published results name no folders
            yield Caveat("the same runs", {}, (arm.label,))


def unequal_sizes(results: AblationResults) -> Iterator[Caveat]:
    """Yield arms that sample with more or fewer parameters than their baseline."""
    yield from unequal(results, "unequal size", lambda arm: arm.sampled_parameters, SIZE_TOLERANCE)


def unequal_budgets(results: AblationResults) -> Iterator[Caveat]:
    """Yield arms that received more or less than their baseline: of the budget, or of compute."""
    rule = results.plan.budget.rule
    if rule == "time":
        yield from unequal(results, "unequal budget", lambda arm: seconds(results, arm), TIME_TOLERANCE, rule=rule)
    else:
        budget: Amount = (lambda arm: arm.images) if rule == "images" else (lambda arm: arm.flops)
        yield from unequal(results, "unequal budget", budget, TOLERANCE, rule=rule)
    if rule != "flops":
        yield from unequal(results, "unequal compute", lambda arm: arm.flops, TOLERANCE, rule=rule)


def unequal(results: AblationResults, kind: str, amount: Amount, tolerance: float, **numbers: str) -> Iterator[Caveat]:
    """Yield a caveat for the arms whose amount differs from that of their baseline."""
    ratios = []
    arms = results.plan.by_label
    for arm in arms.values():
        mine, base = amount(arm), amount(arms[arm.baseline])
        baseline = arm.baseline if kind == "unequal budget" else ""  # the sentence of another kind does not name it
        if mine and base and abs(mine - base) > tolerance * max(abs(mine), abs(base)):
            ratios.append((arm.label, (format_ratio(mine, base), format_si(mine), format_si(base), baseline)))
    if ratios:
        each = [
            {
                "arms": format_arms(results.plan, labels),
                "ratio": ratio,
                "amount": mine,
                "reference": base,
                "baseline": baseline,
            }
            for (ratio, mine, base, baseline), labels in group((what, label) for label, what in ratios).items()
        ]
        yield Caveat(kind, {"ratios": each, **numbers}, tuple(label for label, _ in ratios))


def different_n(results: AblationResults) -> Iterator[Caveat]:
    """Yield metrics that were measured on different numbers of images: distances fall with that number."""
    for metric in results.plan.metrics:
        extractor, _, figure = metric.rpartition(".")
        key = f"{extractor}.{'samples' if figure in OF_ALL_SAMPLES else 'n'}"
        numbers = group(
            (int(row.scores[key]), row.arm) for row in results.runs if metric in row.scores and key in row.scores
        )
        if len(numbers) > 1:
            each = [(n, list(dict.fromkeys(arms))) for n, arms in numbers.items()]
            arms = tuple(dict.fromkeys(arm for _, labels in each for arm in labels))
            yield Caveat("different n", {"metric": metric_title(metric), "numbers": each}, arms)


def different_machines(results: AblationResults) -> Iterator[Caveat]:
    """Yield versions, devices and numbers of threads that differ between runs."""
    for key, values in environments(results).items():
        if key.startswith(SAME_EVERYWHERE) and len(values) > 1:
            yield Caveat("different machines", {"key": key, "values": list(values)})


def seconds(results: AblationResults, arm: ArmRecord) -> float | None:
    """Return the mean training time of the finished runs of an arm."""
    spent = [row.seconds for row in results.of(arm.label) if row.status == "finished"]
    return mean(spent) if spent else None


K = TypeVar("K")


def group(pairs: Iterator[tuple[K, T]]) -> dict[K, list[T]]:
    """Return the values of each key, in order of first appearance."""
    grouped: dict[K, list[T]] = {}
    for key, value in pairs:
        grouped.setdefault(key, []).append(value)
    return grouped
