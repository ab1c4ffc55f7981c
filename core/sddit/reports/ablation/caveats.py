"""What a reader must know before believing an ablation: each caution names its cause and the arms. No torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from sddit.ablations.analysis.diagnostics import Diagnosis, Logs, diagnoses, environments
from sddit.ablations.analysis.results import AblationResults
from sddit.ablations.analysis.statistics import MIN_SEEDS
from sddit.ablations.analysis.table import metric_title
from sddit.ablations.planning.records import ArmRecord
from sddit.formatting import format_si
from sddit.reports.ablation.phrases import format_arms, format_ratio

Amount = Callable[[ArmRecord], float | None]
T = TypeVar("T")

TOLERANCE = 0.02  # share by which two arms' amounts may differ and still count as equal: lengths are whole steps
SIZE = 0.001  # the same of parameters: a few dozen decide nothing
CLOCK = 0.1  # the same of measured seconds
OF_ALL_SAMPLES = ("fd_all", "class_accuracy", "copied")
"""Figures of all samples; the others are of n, the largest number at which there are as many held-out images."""
SAME_EVERYWHERE = ("python", "packages.", "system", "device", "threads")
"""Keys of environment.json that no arm changes."""


@dataclass(frozen=True, slots=True)
class Caution:
    """Something that may mislead."""

    cause: str  # in a word or two
    text: str  # a sentence
    arms: tuple[str, ...] = ()  # that it is about; none: the whole ablation
    doubt: bool = False  # whether it casts doubt on what these arms show


def cautions(results: AblationResults, logs: Logs) -> list[Caution]:
    """All of them, the gravest first."""
    rules = (
        leaking(results),
        warned(results),
        alarmed(results, logs),
        unlooked(results),
        failed(results),
        few_seeds(results),
        shared(results),
        other_sizes(results),
        other_budgets(results),
        other_n(results),
        other_machines(results),
    )
    return [caution for rule in rules for caution in rule]


# --------------------------------------------------------------------------------------------------------------------
# Arms that are not what they seem
# --------------------------------------------------------------------------------------------------------------------


def leaking(results: AblationResults) -> Iterator[Caution]:
    """What is trained can see the clean image: its loss falls for nothing."""
    for arm in results.plan.arms:
        for place in arm.leaks.found if arm.leaks else ():
            text = f"what is trained can see its target, other than through the noisy view ({place}): a loss that falls proves nothing."
            yield Caution("the target leaks", text, (arm.label,), doubt=True)


def warned(results: AblationResults) -> Iterator[Caution]:
    """What the recipes of the arms warn of."""
    arms: dict[str, list[str]] = {}
    for arm in results.plan.arms:
        for text in arm.warnings:
            arms.setdefault(text, []).append(arm.label)
    for text, labels in arms.items():
        some = len(labels) < len(results.plan.arms)  # what holds for all arms favours none
        yield Caution("the recipe warns", f"{text}.", tuple(labels), doubt=some)


def alarmed(results: AblationResults, logs: Logs) -> Iterator[Caution]:
    """Diagnostics that ended outside of what is healthy, such as those of a collapse; a caution for each term."""
    terms: dict[str, dict[str, list[Diagnosis]]] = {}  # by term and key
    for one in diagnoses(results, logs):
        if one.alarms:
            terms.setdefault(one.term, {}).setdefault(one.key, []).append(one)
    for term, keys in terms.items():
        arms = dict.fromkeys(one.arm for group in keys.values() for one in group)
        each = " ".join(f"{group[0].monitor.title} {'; '.join(map(alarm, group))}." for group in keys.values())
        text = f"loss.{term} does not end healthy, so it may have collapsed or learnt nothing. {each}"
        yield Caution("diagnostics alarm", text, tuple(arms), doubt=True)


def alarm(one: Diagnosis) -> str:
    """`in masked: 0.01 is below 0.12 (3 of 3 runs)`."""
    return f"in {one.arm}: {one.alarms[0].why} ({len(one.alarms)} of {len(one.verdicts)} runs)"


def unlooked(results: AblationResults) -> Iterator[Caution]:
    """Arms in which nobody looked for a leak, and why."""
    arms: dict[str, list[str]] = {}
    for arm in results.plan.arms:
        if why := arm.leaks.unchecked if arm.leaks else "the command without --only looks":
            arms.setdefault(why, []).append(arm.label)
    for why, labels in arms.items():
        yield Caution("leaks unknown", f"nobody looked for a leak of the target: {why}.", tuple(labels))


# --------------------------------------------------------------------------------------------------------------------
# Runs
# --------------------------------------------------------------------------------------------------------------------


def failed(results: AblationResults) -> Iterator[Caution]:
    """Failed runs leave the figures to the runs that survived."""
    for arm in results.plan.arms:
        rows = results.of(arm.label)
        count = sum(row.status == "failed" for row in rows)
        if count:
            others = "The figures are of the others, which may be the lucky ones."
            rest = "Nothing is known of it." if count == len(rows) else others
            yield Caution("failed runs", f"{count} of {len(rows)} runs failed. {rest}", (arm.label,))


def few_seeds(results: AblationResults) -> Iterator[Caution]:
    """Below three seeds nothing is said of an arm."""
    finished = {arm.label: sum(row.status == "finished" for row in results.of(arm.label)) for arm in results.plan.arms}
    few = {label: count for label, count in finished.items() if count < MIN_SEEDS}
    if few:
        counts = "; ".join(f"{n} in {format_arms(results.plan, labels)}" for n, labels in alike(few).items())
        text = f"fewer than {MIN_SEEDS} finished seeds ({counts}): no verdict can rest on them."
        yield Caution("too few seeds", text, tuple(few))


def shared(results: AblationResults) -> Iterator[Caution]:
    """An arm with the runs of its baseline is no arm."""
    for arm in results.plan.arms:
        mine, base = ({row.folder for row in results.of(label)} for label in (arm.label, arm.baseline))
        if not arm.is_baseline and mine == base:
            text = "its recipe is the baseline's, and so are its runs: it differs by nothing, whatever the noise. Shift its `seed`, or use --no-reuse."
            yield Caution("the same runs", text, (arm.label,))


# --------------------------------------------------------------------------------------------------------------------
# Unequal terms
# --------------------------------------------------------------------------------------------------------------------


def other_sizes(results: AblationResults) -> Iterator[Caution]:
    """Arms that sample with more or fewer parameters than their baseline."""
    yield from unequal(
        results, "unequal size", "the parameters that sample differ", lambda arm: arm.sampled_parameters, SIZE
    )


def other_budgets(results: AblationResults) -> Iterator[Caution]:
    """Arms that got more or less than their baseline: of what the budget makes equal, or of compute."""
    rule = results.plan.budget.rule
    if rule in ("images", "flops"):
        what = f"the {rule} differ, since whole steps do not hit the budget"
        yield from unequal(
            results, "unequal budget", what, lambda arm: arm.images if rule == "images" else arm.flops, TOLERANCE
        )
    if rule != "flops":
        yield from unequal(
            results, "unequal compute", f"at equal {rule}, the FLOPs differ", lambda arm: arm.flops, TOLERANCE
        )
    if rule == "time":
        yield from off_pace(results)


def off_pace(results: AblationResults) -> Iterator[Caution]:
    """Arms that trained for longer or shorter than their baseline, though the budget is equal time."""
    late = {}
    for arm, base in beside_baseline(results):
        one, other = seconds(results, arm), seconds(results, base)
        if one and other and not near(one, other, CLOCK):
            late[arm.label] = f"{arm.label} trained {format_ratio(one, other)} as long as {base.label}"
    if late:
        text = f"the machine did not keep the measured pace: {'; '.join(late.values())}."
        yield Caution("unequal budget", text, tuple(late))


def unequal(results: AblationResults, cause: str, what: str, amount: Amount, tolerance: float) -> Iterator[Caution]:
    """Yield a caution for the arms whose amount differs from that of their baseline."""
    apart = {}
    for arm, base in beside_baseline(results):
        mine, other = amount(arm), amount(base)
        if mine is not None and other is not None and not near(mine, other, tolerance):
            apart[arm.label] = f"{format_ratio(mine, other)} the baseline's ({format_si(mine)} to {format_si(other)})"
    if apart:
        each = "; ".join(f"{format_arms(results.plan, labels)} {ratio}" for ratio, labels in alike(apart).items())
        yield Caution(cause, f"{what}: {each}.", tuple(apart))


def other_n(results: AblationResults) -> Iterator[Caution]:
    """Distances fall with the number of images: figures at different numbers do not compare."""
    for metric in results.plan.metrics:
        extractor, _, figure = metric.rpartition(".")
        key = f"{extractor}.{'samples' if figure in OF_ALL_SAMPLES else 'n'}"
        numbers: dict[int, list[str]] = {}
        for row in results.runs:
            if metric in row.scores and key in row.scores:
                numbers.setdefault(int(row.scores[key]), []).append(row.arm)
        if len(numbers) > 1:
            each = "; ".join(f"n = {n:,} in {', '.join(dict.fromkeys(arms))}" for n, arms in numbers.items())
            arms = tuple(dict.fromkeys(arm for labels in numbers.values() for arm in labels))
            text = f"{metric_title(metric)} was measured on different numbers of images, and does not compare: {each}."
            yield Caution("different n", text, arms)


def other_machines(results: AblationResults) -> Iterator[Caution]:
    """Runs of other versions, devices or threads than their peers."""
    for key, values in environments(results).items():
        if key.startswith(SAME_EVERYWHERE) and len(values) > 1:
            yield Caution("different machines", f"the runs do not agree on {key}: {', '.join(values)}.")


def beside_baseline(results: AblationResults) -> Iterator[tuple[ArmRecord, ArmRecord]]:
    """(arm, its baseline) of every arm but the baselines."""
    arms = results.plan.by_label
    for arm in arms.values():
        if not arm.is_baseline:
            yield arm, arms[arm.baseline]


def seconds(results: AblationResults, arm: ArmRecord) -> float:
    """Mean training time of the finished runs of an arm; 0 without any."""
    spent: Sequence[float] = [row.seconds for row in results.of(arm.label) if row.status == "finished"]
    return sum(spent) / len(spent) if spent else 0.0


def near(one: float, other: float, share: float) -> bool:
    """Whether two amounts count as equal."""
    return abs(one - other) <= share * max(abs(one), abs(other))


def alike(said: Mapping[str, T]) -> dict[T, list[str]]:
    """The arms of which the same is said, by what it is."""
    arms: dict[T, list[str]] = {}
    for label, what in said.items():
        arms.setdefault(what, []).append(label)
    return arms
