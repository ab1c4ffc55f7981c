"""The conclusions of an ablation as records: what came out, and whether the comparison is fair. No torch.

Their sentences are macros of `templates/sentences.j2`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, median
from typing import Any

from sddit.ablations.analysis.results import AblationResults
from sddit.ablations.analysis.statistics import LEVEL, MIN_SEEDS, Comparison, Verdict, p_text
from sddit.ablations.analysis.table import PREPARED, format_difference, metric_title, redrawing_settings
from sddit.ablations.planning.records import ArmRecord, BudgetRecord
from sddit.formatting import format_si
from sddit.interfaces.metric_names import metric_of
from sddit.reports.ablation.caveats import Caveat, group
from sddit.reports.ablation.phrases import format_arms, format_ratio
from sddit.reports.sentences import sentence

DECIDED: tuple[Verdict, ...] = ("better", "worse", "within noise")
VERDICTS: tuple[Verdict, ...] = (*DECIDED, "no verdict under 3 seeds")

Compared = Mapping[str, Mapping[str, Comparison]]
"""By metric and arm."""


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
        return sentence(self.question.rstrip("?").lower().replace(" ", "_"), **self.numbers)


def summary(results: AblationResults, compared: Compared, found: Sequence[Caveat]) -> list[str]:
    """Return the ablation in a few sentences."""
    plan, rows = results.plan, results.runs
    arms = {arm.label: arm.baseline for arm in plan.arms if not arm.is_baseline}
    sentences = [sentence("setup", budget=budget(plan.budget), seeds=plan.seeds)]
    if not arms:
        return [*sentences, "There is one arm, so nothing is compared."]
    if not compared:
        return [*sentences, "No metric is compared: ablation.metrics and evaluate.features are empty."]
    kinds = group((kind({metric[arm].verdict for metric in compared.values()}), arm) for arm in arms)
    sentences += [
        sentence("group", verdicts=words, arms=format_arms(plan, kinds[words])) for words in KINDS if words in kinds
    ]
    if doubtful := [arm for arm, baseline in arms.items() if doubts_of(arm, baseline, found)]:
        sentences.append(sentence("doubtful", arms=format_arms(plan, doubtful)))
    sentences += best_points(results)
    if failed := sum(row.status == "failed" for row in rows):
        sentences.append(sentence("runs_failed", count=failed, runs=len(rows)))
    if missing := sum(row.status in ("stopped", "waiting") for row in rows):
        sentences.append(sentence("unfinished", count=missing, runs=len(rows)))
    return sentences


def best_points(results: AblationResults) -> list[str]:
    """Return which point of a grid was best for each named arm, one sentence per metric; empty without a grid."""
    points = group((arm.named, arm.label) for arm in results.plan.arms)
    if len(points) < 2 or max(map(len, points.values())) < 2:
        return []
    return [text for metric in results.plan.metrics for text in best_by(results, metric, points.values())]


def best_by(results: AblationResults, metric: str, points: Iterable[Sequence[str]]) -> Iterator[str]:
    """Yield the best point of each named arm on one metric."""
    choose = min if metric_of(metric).better == "lower" else max
    best = []
    for labels in points:
        means = {label: mean(values) for label in labels if (values := results.figure(label, metric).values())}
        if means:
            label = choose(means, key=lambda label: means[label])
            best.append((label, means[label]))
    if best:
        yield sentence("best_points", metric=metric_title(metric), points=best)


KINDS = (
    "Better than the baseline on at least one metric, worse on none",
    "Worse than the baseline on at least one metric, better on none",
    "Better on some metrics and worse on others",
    "No difference from the baseline beyond noise on any metric",
    f"No verdict under {MIN_SEEDS} seeds",
)


def kind(verdicts: set[Verdict]) -> str:
    """Return which of `KINDS` an arm with these verdicts is."""
    good, bad = "better" in verdicts, "worse" in verdicts
    if good or bad:
        return KINDS[2] if good and bad else KINDS[0] if good else KINDS[1]
    return KINDS[3] if "within noise" in verdicts else KINDS[4]


def budget(settled: BudgetRecord) -> str:
    """Return what the budget gives every arm: `equal images, 3,840 for every arm`."""
    return sentence("budget", rule=settled.rule, amount=settled.amount)


def findings(results: AblationResults, compared: Compared, found: Sequence[Caveat]) -> list[Finding]:
    """Return the result of each arm that has a verdict, in the order of the plan; the table has the others."""
    return [
        Finding(
            arm.label,
            arm.baseline,
            {metric: comparisons[arm.label] for metric, comparisons in compared.items()},
            doubts_of(arm.label, arm.baseline, found),
        )
        for arm in results.plan.arms
        if not arm.is_baseline and any(comparisons[arm.label].verdict in DECIDED for comparisons in compared.values())
    ]


def doubts_of(arm: str, baseline: str, found: Sequence[Caveat]) -> list[str]:
    """Return the kinds of the caveats that make the comparison of an arm with its baseline doubtful."""
    own = [one.kind for one in found if one.doubt and arm in one.arms]
    of_baseline = [f"{one.kind} in the baseline" for one in found if one.doubt and baseline in one.arms]
    return list(dict.fromkeys([*own, *of_baseline]))


def comparison_sentence(metric: str, one: Comparison) -> str:
    """`classifier FD (lower is better): -0.47, 95% interval -0.61 to -0.32 over 3 seeds, p = 0.006 Holm-corrected
    ...`.
    """
    difference, interval = format_difference(one)
    tested = one.p is not None and one.p_holm is not None
    return sentence(
        "comparison",
        metric=metric_title(metric),
        better=metric_of(metric).better,
        difference=difference,
        interval=interval.replace(", ", " to "),
        level=f"{LEVEL:.0%}",
        seeds=one.seeds,
        p=p_text(one.p_holm) if tested and one.p_holm is not None else "",
        p_alone=p_text(one.p)
        if one.p is not None and one.p_holm is not None and one.p < 1 - LEVEL <= one.p_holm
        else "",
        family=one.family,
    )


def fairness(results: AblationResults, compared: Compared, found: Sequence[Caveat]) -> list[Answer]:
    """Answer the questions of a reader who knows the field."""
    return [
        parameters(results),
        flops(results),
        Answer("Same tuning?", {"stated": results.plan.tuning}, None),
        seeds(results),
        same_draws(results),
        noise(compared),
        same_evaluation(results, found),
    ]


def parameters(results: AblationResults) -> Answer:
    arms = results.plan.arms
    sampled = {arm.label: arm.sampled_parameters for arm in arms}
    trained = {arm.label: arm.parameters for arm in arms}
    unknown = None in sampled.values() or None in trained.values()
    equal = None if unknown else len(set(sampled.values())) == 1
    return Answer("Same parameters?", {"sampled": spread(sampled), "trained": spread(trained)}, equal)


def flops(results: AblationResults) -> Answer:
    arms = results.plan.arms
    training = {arm.label: arm.flops for arm in arms}
    known = [value for value in training.values() if value is not None]
    equal = max(known) - min(known) <= 0.02 * max(known) if len(known) == len(training) else None
    numbers = {
        "training": spread(training),
        "sampling": spread({arm.label: arm.sampling_flops_per_image for arm in arms}),
        "images": spread({arm.label: arm.images for arm in arms}, exact=True),
    }
    return Answer("Same FLOPs?", numbers, equal)


def seeds(results: AblationResults) -> Answer:
    counts = {arm.label: sum(row.status == "finished" for row in results.of(arm.label)) for arm in results.plan.arms}
    numbers = {"planned": len(results.plan.seeds), "counts": counts, "needed": MIN_SEEDS}
    return Answer("How many seeds?", numbers, None)


def same_draws(results: AblationResults) -> Answer:
    """Answer whether differences are paired by seed, and where draws differ."""

    def named(arms: list[ArmRecord]) -> str:
        return format_arms(results.plan, [arm.label for arm in arms]) if arms else ""

    paired = [arm for arm in results.plan.arms if not redrawing_settings(arm)]
    numbers = {
        "redrawn": named([arm for arm in results.plan.arms if redrawing_settings(arm)]),
        "levels": named([arm for arm in paired if arm.differing("noise_schedule.")]),
        "prepared": named([arm for arm in paired if arm.differing(*PREPARED)]),
    }
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
        "family": max((one.family for arms in compared.values() for one in arms.values()), default=0),
        "metrics": len(compared) if any(compared.values()) else 0,
        "visible": visible,
    }
    return Answer("Is it noise?", numbers, None)


def same_evaluation(results: AblationResults, found: Iterable[Caveat]) -> Answer:
    """Answer whether all arms were sampled and scored in the same way."""
    numbers = [one.text for one in found if one.kind == "different n"]
    settings = {
        arm.label: keys for arm in results.plan.arms if (keys := arm.differing("sampler.", "guidance.", "evaluate."))
    }
    return Answer("Same evaluation?", {"numbers": numbers, "settings": settings}, not (numbers or settings))


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
