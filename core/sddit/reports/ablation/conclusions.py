"""The conclusions of an ablation as records: what came out, and whether the comparison is fair. No torch.

Their sentences are macros of `templates/sentences.j2`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, median
from typing import Any

from sddit.ablations.analysis.results import AblationResults
from sddit.ablations.analysis.statistics import LEVEL, MIN_SEEDS, Comparison, Verdict, p_text
from sddit.ablations.analysis.table import PREPARED, family_size, format_difference, metric_title, redrawing_settings
from sddit.ablations.planning.records import ArmRecord, BudgetRecord, PlanRecord
from sddit.formatting import format_si
from sddit.interfaces.metric_names import metric_of
from sddit.reports.ablation.caveats import TOLERANCE, Caveat, group
from sddit.reports.ablation.phrases import format_arms, format_ratio
from sddit.reports.rendering import sentence

DECIDED: tuple[Verdict, ...] = ("better", "worse", "within noise", "no verdict without gradient")
VERDICTS: tuple[Verdict, ...] = (*DECIDED, "no verdict under 3 seeds")

Compared = Mapping[str, Mapping[str, Comparison]]
"""By metric and arm."""

KINDS = (
    "Better than the baseline on at least one metric, worse on none",
    "Worse than the baseline on at least one metric, better on none",
    "Better on some metrics and worse on others",
    "No difference from the baseline beyond noise on any metric",
    f"No verdict under {MIN_SEEDS} seeds",
    "No verdict, because the loss that was to be compared never changed the network",
)
"""What an arm can be, by its verdicts."""


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one arm."""

    arm: str
    baseline: str
    comparisons: Mapping[str, Comparison]  # by metric
    doubts: Sequence[str]  # kinds of the caveats about it

    @property
    def words(self) -> str:
        """`better on classifier FD; no difference beyond noise on classifier recall`."""
        by_verdict = group((one.verdict, metric_title(metric)) for metric, one in self.comparisons.items())
        return sentence("finding", groups=[(word, by_verdict[word]) for word in VERDICTS if word in by_verdict])

    @property
    def details(self) -> list[str]:
        """A sentence for each metric."""
        return [comparison_sentence(metric, one) for metric, one in self.comparisons.items()]


@dataclass(frozen=True, slots=True)
class Answer:
    """A question that a reader has, answered with numbers."""

    question: str  # such as "Same FLOPs?"
    numbers: Mapping[str, Any]  # what the sentence that answers it contains
    good: bool | None  # whether the answer is the desired one; None: neither

    @property
    def words(self) -> str:
        """The answer, as plain text."""
        return sentence(self.question.rstrip("?").lower().replace(" ", "_"), **self.numbers)


def summary(results: AblationResults, compared: Compared, found: Sequence[Caveat]) -> list[str]:
    """Return the ablation in a few sentences."""
    plan, statuses = results.plan, [row.status for row in results.runs]
    arms = [arm for arm in plan.arms if not arm.is_baseline]
    sentences = [sentence("setup", budget=budget(plan.budget), seeds=plan.seeds)]
    if not arms or not compared:
        return [*sentences, sentence("nothing_compared", single=not arms, undecoded=plan.undecoded)]
    kinds = group((kind({metric[arm.label].verdict for metric in compared.values()}), arm.label) for arm in arms)
    sentences += [f"{words}: {format_arms(plan, kinds[words])}." for words in KINDS if words in kinds]
    if doubtful := [arm.label for arm in arms if doubts_of(arm, found)]:
        sentences.append(sentence("doubtful", arms=format_arms(plan, doubtful)))
    for metric in compared:
        if best := best_points(results, metric):
            sentences.append(sentence("best_points", metric=metric_title(metric), points=best))
    if failed := statuses.count("failed"):
        sentences.append(sentence("runs_failed", count=failed, runs=len(statuses)))
    if missing := statuses.count("stopped") + statuses.count("waiting"):
        sentences.append(sentence("unfinished", count=missing, runs=len(statuses)))
    return sentences


def best_points(results: AblationResults, metric: str) -> list[tuple[str, float]]:
    """Return the best grid point of each named arm and its mean; empty without a grid."""
    points = group((arm.named, arm.label) for arm in results.plan.arms)
    if len(points) < 2 or max(map(len, points.values())) < 2:
        return []
    choose = min if metric_of(metric).better == "lower" else max
    best = []
    for labels in points.values():
        figures = {label: results.figure(label, metric).values() for label in labels}
        if means := {label: mean(values) for label, values in figures.items() if values}:
            best.append(choose(means.items(), key=lambda point: point[1]))
    return best


def kind(verdicts: set[Verdict]) -> str:
    """Return which of `KINDS` an arm with these verdicts is."""
    good, bad = "better" in verdicts, "worse" in verdicts
    if good or bad:
        return KINDS[2] if good and bad else KINDS[0] if good else KINDS[1]
    if "no verdict without gradient" in verdicts:
        return KINDS[5]
    return KINDS[3] if "within noise" in verdicts else KINDS[4]


def budget(settled: BudgetRecord) -> str:
    """Return what the budget gives every arm: `equal images, 3,840 for every arm`."""
    return sentence("budget", rule=settled.rule, amount=settled.amount)


def findings(results: AblationResults, compared: Compared, found: Sequence[Caveat]) -> list[Finding]:
    """Return the result of each arm that has a verdict, in the order of the plan; the table has the others."""
    every = [
        Finding(
            arm.label,
            arm.baseline,
            {metric: comparisons[arm.label] for metric, comparisons in compared.items()},
            doubts_of(arm, found),
        )
        for arm in results.plan.arms
        if not arm.is_baseline
    ]
    return [one for one in every if any(own.verdict in DECIDED for own in one.comparisons.values())]


def doubts_of(arm: ArmRecord, found: Sequence[Caveat]) -> list[str]:
    """Return the kinds of the caveats that make the comparison of an arm with its baseline doubtful."""
    own = [one.kind for one in found if one.doubt and arm.label in one.arms]
    of_baseline = [f"{one.kind} in the baseline" for one in found if one.doubt and arm.baseline in one.arms]
    return list(dict.fromkeys([*own, *of_baseline]))


def comparison_sentence(metric: str, one: Comparison) -> str:
    """Return a comparison as text: `classifier FD (lower is better): -0.47, 95% interval -0.61 to -0.32 over 3 seeds,
    p = 0.006 Holm-corrected for 4 arms`.
    """
    difference, interval = format_difference(one)
    return sentence(
        "comparison",
        metric=metric_title(metric),
        better=metric_of(metric).better,
        one=one,
        difference=difference,
        interval=interval.replace(", ", " to "),
        level=LEVEL,
        p_text=p_text,
    )


def fairness(results: AblationResults, compared: Compared, found: Sequence[Caveat]) -> list[Answer]:
    """Answer the questions of a reader who knows the field."""
    plan = results.plan
    finished = {label: len(results.finished_of(label)) for label in plan.labels}
    seeds = {"planned": len(plan.seeds), "counts": finished, "needed": MIN_SEEDS}
    return [
        same_parameters(plan.arms),
        same_flops(plan.arms),
        Answer("Same tuning?", {"stated": plan.tuning}, None),
        Answer("How many seeds?", seeds, None),
        same_draws(plan),
        noise(compared),
        same_evaluation(plan, found),
    ]


def same_parameters(arms: Sequence[ArmRecord]) -> Answer:
    sampled = {arm.label: arm.sampled_parameters for arm in arms}
    trained = {arm.label: arm.parameters for arm in arms}
    unknown = None in sampled.values() or None in trained.values()
    equal = None if unknown else len(set(sampled.values())) == 1
    return Answer("Same parameters?", {"sampled": spread(sampled), "trained": spread(trained)}, equal)


def same_flops(arms: Sequence[ArmRecord]) -> Answer:
    known = [arm.flops for arm in arms if arm.flops is not None]
    equal = max(known) - min(known) <= TOLERANCE * max(known) if len(known) == len(arms) else None
    numbers = {
        "training": spread({arm.label: arm.flops for arm in arms}),
        "sampling": spread({arm.label: arm.sampling_flops_per_image for arm in arms}),
        "images": spread({arm.label: arm.images for arm in arms}, exact=True),
    }
    return Answer("Same FLOPs?", numbers, equal)


def same_draws(plan: PlanRecord) -> Answer:
    """Answer whether differences are paired by seed, and where draws differ."""
    redrawn = [arm for arm in plan.arms if redrawing_settings(arm)]
    paired = [arm for arm in plan.arms if not redrawing_settings(arm)]
    arms = {
        "redrawn": redrawn,
        "levels": [arm for arm in paired if arm.differing("noise_schedule.")],
        "prepared": [arm for arm in paired if arm.differing(*PREPARED)],
    }
    numbers = {name: format_arms(plan, [arm.label for arm in some]) if some else "" for name, some in arms.items()}
    return Answer("Same data and noise?", numbers, None if any(numbers.values()) else True)


def noise(compared: Compared) -> Answer:
    """Answer what the statistics can detect."""
    visible = []
    for metric, arms in compared.items():
        widths = [(c.high - c.low) / 2 for c in arms.values() if c.low is not None and c.high is not None]
        if widths:
            visible.append((median(widths), metric_title(metric)))
    numbers = {
        "alpha": 1 - LEVEL,
        "needed": MIN_SEEDS,
        "family": family_size(compared),
        "metrics": len(compared) if any(compared.values()) else 0,
        "visible": visible,
    }
    return Answer("Is it noise?", numbers, None)


def same_evaluation(plan: PlanRecord, found: Sequence[Caveat]) -> Answer:
    """Answer whether all arms were sampled and scored in the same way."""
    numbers = [one.text for one in found if one.kind == "different n"]
    settings = {arm.label: arm.differing("sampler.", "guidance.", "evaluate.") for arm in plan.arms}
    different = {label: keys for label, keys in settings.items() if keys}
    return Answer("Same evaluation?", {"numbers": numbers, "settings": different}, not (numbers or different))


def spread(amounts: Mapping[str, float | None], *, exact: bool = False) -> dict[str, Any]:
    """Return the extreme amounts with their arms, their ratio (None: equal), and arms with unknown amounts."""
    known = {label: amount for label, amount in amounts.items() if amount is not None}
    unknown = [label for label in amounts if label not in known]
    if not known:
        return {"unknown": unknown, "lowest": "", "ratio": None}
    low, high = min(known, key=lambda label: known[label]), max(known, key=lambda label: known[label])
    text = "{:,.0f}".format if exact else format_si
    ratio = "from zero" if not known[low] else format_ratio(known[high], known[low])
    return {
        "unknown": unknown,
        "lowest": text(known[low]),
        "lowest_arm": low,
        "highest": text(known[high]),
        "highest_arm": high,
        "ratio": None if known[low] == known[high] else ratio,
    }
