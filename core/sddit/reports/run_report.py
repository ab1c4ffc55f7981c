"""The report of a run: one HTML file that needs no network and runs no script.

Everything that comes from a recipe, a plugin or a data set is escaped; nothing here knows what any of them is.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import mean, median, variance
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from sddit.evaluation.probe import Probe
from sddit.evaluation.probe import charts as probe_charts
from sddit.formatting import format_duration, format_number
from sddit.interfaces import Monitor
from sddit.interfaces.metric_names import KNOWN_METRICS, SCORE
from sddit.reports.charts import Reference, Series, levels, line_chart
from sddit.reports.page import render
from sddit.runs.spikes import SPIKE

if TYPE_CHECKING:
    from sddit.evaluation.scores import Scores
from sddit.evaluation.monitors import (
    CORE_KEYS,
    LEADS,
    MonitorResult,
    Row,
    _bin_order,
    _tail,
    judge,
    keys_of,
    label_of,
    monitors,
)

DEFAULT = "default"  # how the origin of an untouched setting begins
NEAR = 1.5  # a distance of so many floors leaves little to gain
STILL_FALLING = 0.03  # share by which a term fell in the last tenth of a run
COPIES = 3.0  # so many times as many near copies as real images give are worth a look


@dataclass(frozen=True, slots=True)
class NextStep:
    """Something worth trying, and what to type for it."""

    text: str
    command: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunCost:
    """What a run cost. None: not known."""

    seconds: float  # of training
    images_per_second: float | None = None
    parameters: int | None = None  # trained
    flops_per_step: float | None = None  # forward and backward, teacher and heads counted
    flops: float | None = None  # of the whole run
    peak_memory: float | None = None  # bytes
    device: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportData:
    """All that a report shows."""

    title: str
    summary: str  # the question, in a sentence
    status: str  # "finished", "stopped at step 400 of 1000"
    command: str  # what repeats this run, such as "sddit-run recipes/quickstart.toml"
    cost: RunCost
    metrics: Sequence[Row]  # the lines of metrics.jsonl
    grid: bytes | None = None  # PNG of the final samples
    previews: Sequence[tuple[int, bytes]] = ()  # (step, PNG) over the run
    scores: Mapping[str, Scores] = field(default_factory=dict)
    probe: Probe | None = None
    monitors: Mapping[str, Sequence[Monitor]] = field(default_factory=dict)  # by the label of their term
    noise_bins: Sequence[str] = ()  # names of the bins of "loss/<label>@<bin>", least noise first
    recipe: Mapping[str, Any] = field(default_factory=dict)  # resolved
    origins: Mapping[str, str] = field(default_factory=dict)  # dotted key -> where its value came from
    environment: Mapping[str, str] = field(default_factory=dict)
    warnings: Sequence[str] = ()
    next_steps: Sequence[NextStep] = ()


def write_report(run: ReportData) -> str:
    """The page, as text."""
    verdicts = [judge(key, monitor, run.metrics) for key, monitor in monitors(run.monitors, run.metrics).items()]
    return render(
        "run_report.html.j2",
        run=run,
        facts=headline(run),
        score_tables=[(scores, score_rows(scores)) for scores in run.scores.values()],
        verdicts=verdicts,
        alarms=[verdict for verdict in verdicts if verdict.state == "look here"],
        score_charts=score_charts(run),
        probe_charts=list(probe_charts(run.probe).values()) if run.probe else [],
        loss_charts=loss_charts(run),
        noise_charts=noise_charts(run),
        diagnostic_charts=diagnostic_charts(run),
        course_charts=course_charts(run),
        chosen=[setting for setting in settings(run) if not setting.untouched],
        untouched=[setting for setting in settings(run) if setting.untouched],
        cost=cost_rows(run.cost),
        steps=[*suggestions(run, verdicts), *run.next_steps],
        format_number=format_number,
    )


# Words


def headline(run: ReportData) -> Iterator[tuple[str, str, str]]:
    """The figures that a reader wants first: (name, figure, beside it)."""
    for scores in run.scores.values():
        yield scores.fd_name, f"{scores.times_floor:.1f} ×", "the distance of unseen real images"
        if scores.class_accuracy is not None and scores.class_accuracy_floor is not None:
            yield (
                "Class accuracy",
                f"{scores.class_accuracy:.0%}",
                f"of samples by {scores.title}; real images {scores.class_accuracy_floor:.0%}",
            )
    yield "Training", format_duration(run.cost.seconds), run.cost.device
    if run.cost.images_per_second is not None:
        yield "Speed", format_number(run.cost.images_per_second), "images per second"


@dataclass(frozen=True, slots=True)
class ScoreRow:
    """A line of the table of scores."""

    name: str
    n: int
    value: str
    real: str  # what held-out images get in the samples' place
    words: str


def score_rows(scores: Scores) -> Iterator[ScoreRow]:
    """Scores beside what real images reach, and what that means."""
    n, k = scores.n, scores.neighbours
    yield ScoreRow(
        scores.fd_name,
        n,
        format_number(scores.fd),
        format_number(scores.fd_floor),
        f"{scores.times_floor:.1f} times the floor",
    )
    yield ScoreRow(
        scores.fd_name,
        scores.samples,
        format_number(scores.fd_all),
        "",
        f"all samples: compare at n = {scores.samples:,} only",
    )
    within = scores.kid <= scores.kid_floor + 2 * max(scores.kid_spread, scores.kid_floor_spread)
    yield ScoreRow(
        scores.kid_name,
        n,
        f"{format_number(scores.kid)} ± {format_number(scores.kid_spread)}",
        f"{format_number(scores.kid_floor)} ± {format_number(scores.kid_floor_spread)}",
        ("within the spread of real images" if within else "above the spread of real images")
        + f" ({scores.kid_subsets} subsets of {scores.kid_subset_size})",
    )
    yield ScoreRow(
        f"Precision (k = {k})",
        n,
        f"{scores.precision:.2f}",
        f"{scores.precision_floor:.2f}",
        f"{scores.precision:.0%} of samples lie among real images",
    )
    yield ScoreRow(
        f"Recall (k = {k})",
        n,
        f"{scores.recall:.2f}",
        f"{scores.recall_floor:.2f}",
        f"samples reach {scores.recall:.0%} of real images",
    )
    if scores.density is not None and scores.density_floor is not None:
        yield ScoreRow(
            f"Density (k = {k})",
            n,
            f"{scores.density:.2f}",
            f"{scores.density_floor:.2f}",
            "how crowded real images are around samples: above the floor, samples keep to the usual",
        )
    if scores.coverage is not None and scores.coverage_floor is not None:
        yield ScoreRow(
            f"Coverage (k = {k})",
            n,
            f"{scores.coverage:.2f}",
            f"{scores.coverage_floor:.2f}",
            f"{scores.coverage:.0%} of real images have a sample nearby",
        )
    if scores.copied is not None and scores.copied_floor is not None:
        yield ScoreRow(
            "Near copies",
            scores.samples,
            f"{scores.copied:.3f}",
            f"{scores.copied_floor:.3f}",
            f"{scores.copied:.1%} of samples lie as near to a training image as {scores.copied_floor:.1%} of real ones do",
        )
    if scores.class_accuracy is not None and scores.class_accuracy_floor is not None:
        yield ScoreRow(
            "Class accuracy",
            scores.samples,
            f"{scores.class_accuracy:.2f}",
            f"{scores.class_accuracy_floor:.2f}",
            f"{scores.class_accuracy:.0%} of samples show the class that was asked for",
        )
    for key, value in scores.own.items():
        name = KNOWN_METRICS[key].title if key in KNOWN_METRICS else key
        yield ScoreRow(
            name, scores.samples, format_number(value), "", f"all samples: compare at n = {scores.samples:,} only"
        )


def suggestions(run: ReportData, verdicts: Sequence[MonitorResult]) -> Iterator[NextStep]:
    """What the numbers of this run suggest to try."""
    for verdict in verdicts:
        if verdict.state == "look here":
            yield NextStep(
                f"{verdict.monitor.title}: {verdict.why}. Healthy is: {verdict.monitor.healthy}. The settings of "
                f"loss.{label_of(verdict.key)} are the place to look."
            )
    if spike := _spike(run.metrics):
        step, times = spike
        yield NextStep(
            f"At step {step:g} the gradient was {times:.0f} times its usual size. A lower optimizer.lr, a longer warm-up "
            "or a smaller optimizer.clip calms it."
        )
    for scores in run.scores.values():
        if scores.precision < 0.8 * scores.precision_floor:
            yield NextStep(
                f"By {scores.title}, many samples look unlike any real image (precision {scores.precision:.2f}, real images "
                f"{scores.precision_floor:.2f}): train longer, use more sampler steps, or try guidance.",
                "sddit-run show guidances",
            )
        if scores.recall < 0.8 * scores.recall_floor:
            yield NextStep(
                f"By {scores.title}, samples miss part of the variety of real images (recall {scores.recall:.2f}, real images "
                f"{scores.recall_floor:.2f}): weaker guidance or longer training widens it."
            )
        if (
            scores.copied is not None
            and scores.copied_floor is not None
            and scores.copied > COPIES * scores.copied_floor
        ):
            yield NextStep(
                f"By {scores.title}, {scores.copied:.1%} of samples lie as near to a training image as {scores.copied_floor:.1%} "
                "of real ones do. They may be copies, or merely the plainest of their kind: look at the closest pairs.",
                "sddit-run evaluate RUN --copies",
            )
    near = bool(run.scores) and all(scores.times_floor <= NEAR for scores in run.scores.values())
    if (label := _still_falling(run.metrics)) and not near:
        steps = int(run.metrics[-1]["step"])
        yield NextStep(
            f"loss.{label} was still falling when the run ended: a longer one should help.",
            f"{run.command} train.steps={2 * steps}",
        )


def cost_rows(cost: RunCost) -> Iterator[tuple[str, str]]:
    """What the run cost, in units that a person reads."""
    unknown = "not stated"
    yield "Device", cost.device or unknown
    yield "Trained parameters", unknown if cost.parameters is None else f"{cost.parameters:,}"
    yield "FLOPs of a step", unknown if cost.flops_per_step is None else f"{cost.flops_per_step:.3g}"
    yield "FLOPs of the run", unknown if cost.flops is None else f"{cost.flops:.3g}"
    yield "Images per second", unknown if cost.images_per_second is None else format_number(cost.images_per_second)
    yield "Time in training", format_duration(cost.seconds)
    yield "Peak memory", unknown if cost.peak_memory is None else f"{cost.peak_memory / 2**20:,.0f} MiB"


# Curves


def loss_charts(run: ReportData) -> list[Markup]:
    """One chart for each term, then all of them as they are weighted."""
    labels = [_tail(key) for key in keys_of(run.metrics) if key.startswith("loss/") and "@" not in key]
    charts = [line_chart(f"loss.{label}", [_series(run.metrics, f"loss/{label}", label)]) for label in labels]
    if len(labels) > 1:
        charts.append(line_chart("weight × loss", [_weighted(run.metrics, label) for label in labels]))
    return charts


def score_charts(run: ReportData) -> list[Markup]:
    """How the scores went, where they were taken more often than at the end, beside what real images get."""
    charts = []
    for key in keys_of(run.metrics):
        label, _, figure = key.removeprefix(SCORE).rpartition(".")
        if not key.startswith(SCORE) or sum(key in row for row in run.metrics) < 2:
            continue
        title = f"{run.scores[label].title if label in run.scores else label}: {KNOWN_METRICS[figure].title}"
        floor = getattr(run.scores.get(label), f"{figure}_floor", None)
        references = [] if floor is None else [Reference("unseen real images", floor)]
        charts.append(
            line_chart(title, [_series(run.metrics, key, title)], log_y=figure == "fd", references=references)
        )
    return charts


def noise_charts(run: ReportData) -> list[Markup]:
    """For each term, its curve by noise level, least noise first."""
    by_term: dict[str, list[str]] = {}
    for key in keys_of(run.metrics):
        if key.startswith("loss/") and "@" in key:
            by_term.setdefault(key.partition("@")[0], []).append(key)
    charts = []
    for term, keys in by_term.items():
        named = len(run.noise_bins) == len(keys)
        names = run.noise_bins if named else [f"level {i + 1} of {len(keys)}" for i in range(len(keys))]
        series = [
            _series(run.metrics, key, name) for key, name in zip(sorted(keys, key=_bin_order), names, strict=True)
        ]
        charts.append(line_chart(f"loss.{_tail(term)} by noise level", series))
    return charts


def diagnostic_charts(run: ReportData) -> list[Markup]:
    """Every number that a term logged about itself, with what it should be read against."""
    known = monitors(run.monitors, run.metrics)
    own = [key for key in keys_of(run.metrics) if "/" in key and not key.startswith(CORE_KEYS)]
    return [
        line_chart(
            known[key].title if key in known else key,
            [_series(run.metrics, key, key)],
            references=levels(known[key]) if key in known else (),
        )
        for key in own
    ]


def course_charts(run: ReportData) -> list[Markup]:
    """How the optimisation went."""
    names = {"grad_norm": "gradient norm", "lr": "learning rate", "images_per_second": "images per second"}
    present = keys_of(run.metrics)
    charts = [
        line_chart(title, [_series(run.metrics, key, title)], log_y=key == "grad_norm")
        for key, title in names.items()
        if key in present
    ]
    if ratios := [key for key in present if key.startswith("grad_ratio/")]:
        title, levels = (
            "gradient of a term over that of the first",
            [Reference("equal pull", 1), Reference("alarm above", LEADS)],
        )
        charts.append(line_chart(title, [_series(run.metrics, key, _tail(key)) for key in ratios], references=levels))
    return charts


def _series(metrics: Sequence[Row], key: str, name: str) -> Series:
    rows = [row for row in metrics if key in row]
    return Series(name, [row["step"] for row in rows], [row[key] for row in rows])


def _weighted(metrics: Sequence[Row], label: str) -> Series:
    """What a term adds to the objective."""
    rows = [row for row in metrics if f"loss/{label}" in row and f"weight/{label}" in row]
    return Series(label, [row["step"] for row in rows], [row[f"weight/{label}"] * row[f"loss/{label}"] for row in rows])


def _spike(metrics: Sequence[Row]) -> tuple[float, float] | None:
    """(step, multiple of the median) of the largest gradient norm after the first tenth, if it stands out."""
    rows = [row for row in metrics if math.isfinite(row.get("grad_norm", math.nan))][len(metrics) // 10 :]
    if not rows:
        return None
    usual = median(row["grad_norm"] for row in rows)
    worst = max(rows, key=lambda row: row["grad_norm"])
    return (worst["step"], worst["grad_norm"] / usual) if usual > 0 and worst["grad_norm"] > SPIKE * usual else None


def _still_falling(metrics: Sequence[Row]) -> str:
    """The first term whose mean over the last tenth is clearly below that of the tenth before; empty if there is none."""
    for key in keys_of(metrics):
        values = [row[key] for row in metrics if key in row]
        tenth = len(values) // 10
        if not key.startswith("loss/") or "@" in key or tenth < 3:
            continue
        before, last = values[-2 * tenth : -tenth], values[-tenth:]
        if not all(map(math.isfinite, (*before, *last))):
            continue
        noise = math.sqrt((variance(before) + variance(last)) / tenth)
        if mean(before) - mean(last) > max(3 * noise, STILL_FALLING * abs(mean(before))):
            return _tail(key)
    return ""


# The recipe


@dataclass(frozen=True, slots=True)
class Setting:
    """One key of the resolved recipe."""

    key: str  # dotted
    value: str
    origin: str

    @property
    def untouched(self) -> bool:
        return self.origin.startswith(DEFAULT)


def settings(run: ReportData) -> list[Setting]:
    """The resolved recipe, one line a key. A key without an origin has the nearest one above it, or is a default."""
    return [Setting(key, _text(value), _origin(run.origins, key, value)) for key, value in _flat(run.recipe)]


def _flat(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in table.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping) and value and not {"start", "end"} <= value.keys():
            yield from _flat(value, f"{key}.")
        else:
            yield key, value


def _text(value: Any) -> str:
    """A value as a recipe writes it; a value schedule as a way from one number to another."""
    match value:
        case {} if not value:
            return "none"
        case {"start": start, "end": end, **rest}:
            how = ", ".join(f"{name} {_text(part)}" for name, part in rest.items())
            return f"{_text(start)} → {_text(end)}" + (f" ({how})" if how else "")
        case bool():
            return "true" if value else "false"
        case None:
            return "none"
        case float():
            return f"{value:g}"
        case list() | tuple():
            return ", ".join(_text(part) for part in value) or "none"
    return str(value)


def _origin(origins: Mapping[str, str], key: str, value: Any) -> str:
    key = f"{key}.start" if isinstance(value, Mapping) else key  # a value schedule is noted by its parts
    while key:
        if key in origins:
            return origins[key]
        key = key.rpartition(".")[0]
    return DEFAULT
