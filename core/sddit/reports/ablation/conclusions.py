"""The plain words of an ablation's report, made of its statistics: what came out, and whether the comparison is fair. No torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, median

from sddit.ablations.analysis.results import AblationResults
from sddit.ablations.analysis.statistics import LEVEL, MIN_SEEDS, Comparison, Verdict, p_text
from sddit.ablations.analysis.table import PREPARED, format_difference, metric_title, redrawing_settings
from sddit.ablations.planning.records import BudgetRecord
from sddit.formatting import format_count, format_si, join_words
from sddit.interfaces.metric_names import metric_of
from sddit.reports.ablation.caveats import Caution
from sddit.reports.ablation.phrases import format_arms, format_ratio

DECIDED: tuple[Verdict, ...] = ("better", "worse", "within noise")

Compared = Mapping[str, Mapping[str, Comparison]]
"""By metric and arm."""

NAMES = {"images": "images", "flops": "FLOPs of training", "time": "seconds of training"}


@dataclass(frozen=True, slots=True)
class Finding:
    """What came out for one arm."""

    arm: str
    baseline: str
    words: str  # all metrics in a clause each
    details: Sequence[str]  # a sentence for each metric
    doubts: Sequence[str]  # causes of the cautions about it


@dataclass(frozen=True, slots=True)
class Answer:
    """A question that a reader has, answered with numbers."""

    question: str
    words: str
    good: bool | None  # whether the answer is the one to hope for; None: neither


# --------------------------------------------------------------------------------------------------------------------
# What came out
# --------------------------------------------------------------------------------------------------------------------


def summary(results: AblationResults, compared: Compared, found: Sequence[Caution]) -> list[str]:
    """The ablation in a few sentences."""
    plan = results.plan
    arms = {arm.label: arm.baseline for arm in plan.arms if not arm.is_baseline}
    said = [under(results)]
    if not arms:
        return [*said, "There is one arm, so nothing is compared."]
    if not compared:
        return [*said, "No metric is compared: ablation.metrics is empty, and so is evaluate.features."]
    kinds: dict[str, list[str]] = {}
    for arm in arms:
        kinds.setdefault(kind({comparisons[arm].verdict for comparisons in compared.values()}), []).append(arm)
    said += [f"{words}: {format_arms(plan, kinds[words])}." for words in KINDS if words in kinds]
    if doubtful := [arm for arm, baseline in arms.items() if doubts_of(arm, baseline, found)]:
        said.append(f"Doubtful, by the cautions about them or their baseline: {format_arms(plan, doubtful)}.")
    said += best_points(results)
    if failed := sum(row.status == "failed" for row in results.runs):
        said.append(f"{failed} of {len(results.runs)} runs failed.")
    if missing := sum(row.status in ("stopped", "waiting") for row in results.runs):
        said.append(f"{missing} of {len(results.runs)} runs are still to be finished, so this is provisional.")
    return said


def best_points(results: AblationResults) -> list[str]:
    """Which point of a grid served each named arm best, a sentence for each metric: what a tuning is read for."""
    points: dict[str, list[str]] = {}
    for arm in results.plan.arms:
        points.setdefault(arm.named, []).append(arm.label)
    if len(points) < 2 or max(map(len, points.values())) < 2:
        return []
    return [sentence for metric in results.plan.metrics for sentence in best_by(results, metric, points.values())]


def best_by(results: AblationResults, metric: str, points: Iterable[Sequence[str]]) -> Iterator[str]:
    """`Best of its points by mean classifier FD: dit lr=0.012 (8.2), sd_dit lr=0.024 (8).`"""
    choose = min if metric_of(metric).better == "lower" else max
    best = []
    for labels in points:
        means = {label: mean(values) for label in labels if (values := results.figure(label, metric).values())}
        if means:
            label = choose(means, key=lambda label: means[label])
            best.append(f"{label} ({means[label]:.3g})")
    if best:
        yield f"Best of its points by mean {metric_title(metric)}: {', '.join(best)}."


KINDS = (
    "Better than the baseline on at least one metric, worse on none",
    "Worse than the baseline on at least one metric, better on none",
    "Better on some metrics and worse on others",
    "No difference from the baseline beyond noise, on any metric",
    f"No verdict under {MIN_SEEDS} seeds",
)


def kind(verdicts: set[Verdict]) -> str:
    """Which of `KINDS` an arm with these verdicts is."""
    good, bad = "better" in verdicts, "worse" in verdicts
    if good or bad:
        return KINDS[2] if good and bad else KINDS[0] if good else KINDS[1]
    return KINDS[3] if "within noise" in verdicts else KINDS[4]


def under(results: AblationResults) -> str:
    """`Budget: equal images, 3,840 for every arm, in each of 3 seeds (0, 1, 2).`"""
    plan = results.plan
    numbers = ", ".join(map(str, plan.seeds))
    return f"Budget: {budget(plan.budget)}, in each of {format_count(len(plan.seeds), 'seed')} ({numbers})."


def budget(settled: BudgetRecord) -> str:
    """`equal images, 3,840 for every arm`: what the budget gives every arm."""
    rule = f"equal {NAMES[settled.rule]}"
    if settled.amount is None:
        return rule
    if settled.rule == "flops":
        return f"{rule}, {format_si(settled.amount)} for every arm"
    return f"{rule}, {settled.amount:,.0f} for every arm"


def findings(results: AblationResults, compared: Compared, found: Sequence[Caution]) -> list[Finding]:
    """Arm by arm, in the order of the plan, where there is a verdict: the table has the others."""
    return [
        Finding(
            arm.label,
            arm.baseline,
            clauses({metric: comparisons[arm.label] for metric, comparisons in compared.items()}),
            [sentence(metric, comparisons[arm.label]) for metric, comparisons in compared.items()],
            doubts_of(arm.label, arm.baseline, found),
        )
        for arm in results.plan.arms
        if not arm.is_baseline and any(comparisons[arm.label].verdict in DECIDED for comparisons in compared.values())
    ]


def doubts_of(arm: str, baseline: str, found: Sequence[Caution]) -> list[str]:
    """The causes for which what is said of an arm, beside its baseline, may mislead."""
    own = [one.cause for one in found if one.doubt and arm in one.arms]
    of_baseline = [f"{one.cause} in the baseline" for one in found if one.doubt and baseline in one.arms]
    return list(dict.fromkeys([*own, *of_baseline]))


def clauses(by_metric: Mapping[str, Comparison]) -> str:
    """`better on classifier FD; no difference beyond noise on classifier recall`."""
    words: Mapping[Verdict, str] = {
        "better": "better on",
        "worse": "worse on",
        "within noise": "no difference beyond noise on",
        "no verdict under 3 seeds": "no verdict under 3 seeds on",
    }
    said = []
    for verdict, start in words.items():
        metrics = [metric_title(metric) for metric, comparison in by_metric.items() if comparison.verdict == verdict]
        if metrics:
            said.append(f"{start} {join_words(metrics)}")
    return "; ".join(said)


def sentence(metric: str, comparison: Comparison) -> str:
    """`classifier FD (lower is better): -0.47, 95 % interval -0.61 to -0.32 over 3 seeds, p = 0.006 for 2 arms`."""
    name = f"{metric_title(metric)} ({metric_of(metric).better} is better)"
    number, interval = format_difference(comparison)
    if not number:
        return f"{name}: no seed finished on both sides"
    between = f", {LEVEL:.0%} interval {interval.replace(', ', ' to ')}" if interval else ""
    corrected = ""
    if comparison.p is not None and comparison.p_holm is not None:
        alone = f" ({p_text(comparison.p)} alone)" if comparison.p < 1 - LEVEL <= comparison.p_holm else ""
        corrected = f", {p_text(comparison.p_holm)} after Holm over {format_count(comparison.family, 'arm')}{alone}"
    return f"{name}: {number}{between} over {format_count(comparison.seeds, 'seed')}{corrected}"


# --------------------------------------------------------------------------------------------------------------------
# Whether it is fair
# --------------------------------------------------------------------------------------------------------------------


def fairness(results: AblationResults, compared: Compared, found: Sequence[Caution]) -> list[Answer]:
    """The questions of a reader who knows the field."""
    return [
        parameters(results),
        flops(results),
        tuning(results),
        seeds(results),
        same_draws(results),
        noise(results, compared),
        same_evaluation(results, found),
    ]


def parameters(results: AblationResults) -> Answer:
    arms = results.plan.arms
    sampled = {arm.label: arm.sampled_parameters for arm in arms}
    trained = {arm.label: arm.parameters for arm in arms}
    equal = len(set(sampled.values())) == 1
    words = f"At sampling: {spread(sampled)}. In training, with the heads of the losses: {spread(trained)}."
    unknown = None in sampled.values() or None in trained.values()
    return Answer("Same parameters?", words, None if unknown else equal)


def flops(results: AblationResults) -> Answer:
    arms = results.plan.arms
    training = {arm.label: arm.flops for arm in arms}
    sampling = {arm.label: arm.sampling_flops_per_image for arm in arms}
    images = {arm.label: arm.images for arm in arms}
    known = [value for value in training.values() if value is not None]
    equal = len(known) == len(training) and max(known) - min(known) <= 0.02 * max(known)
    words = f"A whole training run: {spread(training)}. An image that is sampled: {spread(sampling)}. Images seen: {spread(images, '{:,.0f}'.format)}."
    return Answer("Same FLOPs?", words, equal if len(known) == len(training) else None)


def tuning(results: AblationResults) -> Answer:
    said = results.plan.tuning
    absent = "Nothing is stated: ablation.tuning is the place to say how settings were chosen, for every arm alike."
    return Answer("Same tuning?", f"The recipe states: {said}" if said else absent, None)


def seeds(results: AblationResults) -> Answer:
    counts = {arm.label: sum(row.status == "finished" for row in results.of(arm.label)) for arm in results.plan.arms}
    planned = len(results.plan.seeds)
    if set(counts.values()) == {planned}:
        words = f"{planned} in every arm, all finished."
    else:
        words = f"Finished of {planned}: " + ", ".join(f"{label} {number}" for label, number in counts.items()) + "."
    less = "" if min(counts.values()) >= MIN_SEEDS else f" Under {MIN_SEEDS} there is no verdict."
    return Answer("How many seeds?", words + less, None)


def same_draws(results: AblationResults) -> Answer:
    """Whether differences by seed are paired, and of what."""
    arms = results.plan.arms
    anew = [arm.label for arm in arms if redrawing_settings(arm)]
    levels = [arm.label for arm in arms if arm.differing("noise_schedule.") and not redrawing_settings(arm)]
    prepared = [arm.label for arm in arms if arm.differing(*PREPARED) and not redrawing_settings(arm)]
    words = (
        "Arms of one seed see the same images and noise, and begin with equal weights where they share modules. Differences are taken "
        "seed by seed."
    )
    if levels:
        words += f" In {format_arms(results.plan, levels)} the noise has other levels, by the recipe."
    if prepared:
        words += f" In {format_arms(results.plan, prepared)} labels are dropped, or images flipped or scaled, otherwise, by the recipe."
    if anew:
        words += (
            f" Not so in {format_arms(results.plan, anew)}: another seed, batch or data set draws anew, and the two sides are compared as "
            "independent runs (Welch's t)."
        )
    return Answer("Same data and noise?", words, None if anew or levels or prepared else True)


def noise(results: AblationResults, compared: Compared) -> Answer:
    """What the statistics can see."""
    if not any(compared.values()):
        return Answer("Is it noise?", "Nothing is compared.", None)
    reaches = []
    for metric, arms in compared.items():
        widths = [(c.high - c.low) / 2 for c in arms.values() if c.low is not None and c.high is not None]
        if widths:
            reaches.append(f"{median(widths):.2g} on {metric_title(metric)}")
    family = max(one.family for arms in compared.values() for one in arms.values())
    correction = f", after Holm's correction for {format_count(family, 'arm')} on each metric" if family else ""
    words = (
        f"A verdict needs p < {1 - LEVEL:.2g} by Student's t over {MIN_SEEDS} seeds or more{correction}. "
        f"{format_count(len(compared), 'metric')} {'is' if len(compared) == 1 else 'are'} looked at, and who looks at many sees more by chance. "
    )
    if reaches:
        words += f"What could be seen, as half of a usual interval: {', '.join(reaches)}; smaller differences would not show."
    return Answer("Is it noise?", words, None)


def same_evaluation(results: AblationResults, found: Iterable[Caution]) -> Answer:
    """Whether all arms were sampled and scored alike."""
    unequal = [one.text for one in found if one.cause == "different n"]
    others = {
        arm.label: keys for arm in results.plan.arms if (keys := arm.differing("sampler.", "guidance.", "evaluate."))
    }
    unequal += [f"{label} is sampled or scored with another {join_words(keys)}." for label, keys in others.items()]
    alike = "Every arm was sampled by the same sampler, and every metric measured on as many images in every run."
    words = " ".join(unequal) or alike
    return Answer("Same evaluation?", words, not unequal)


# --------------------------------------------------------------------------------------------------------------------
# Words
# --------------------------------------------------------------------------------------------------------------------


def spread(amounts: Mapping[str, float | None], text: Callable[[float], str] = format_si) -> str:
    """`490 k in every arm`, or `from 410 k (a) to 520 k (b), 1.27 times`."""
    known = {label: amount for label, amount in amounts.items() if amount is not None}
    if len(known) < len(amounts):
        silent = f"not stated for {join_words([label for label in amounts if label not in known])}"
        return f"{silent}; the others: {spread(known, text)}" if known else silent
    least, most = min(known, key=lambda label: known[label]), max(known, key=lambda label: known[label])
    if known[least] == known[most]:
        return f"{text(known[least])} in every arm"
    ratio = format_ratio(known[most], known[least]) if known[least] else "from nothing"
    return f"from {text(known[least])} ({least}) to {text(known[most])} ({most}), {ratio}"
