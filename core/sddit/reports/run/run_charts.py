"""The charts in the report of a run: losses, scores, noise levels, diagnostics, optimisation."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from sddit.evaluation.monitors import CORE_KEYS, LEADS, Row, _bin_order, _tail, keys_of, monitors
from sddit.interfaces.metric_names import KNOWN_METRICS, SCORE
from sddit.reports.charts import Reference, Series, levels, line_chart
from sddit.reports.run.run_data import ReportData


def loss_charts(run: ReportData) -> list[Markup]:
    """Return one chart for each term, then all of them as they are weighted."""
    labels = [_tail(key) for key in keys_of(run.metrics) if key.startswith("loss/") and "@" not in key]
    charts = [line_chart(f"loss.{label}", [_series(run.metrics, f"loss/{label}", label)]) for label in labels]
    if len(labels) > 1:
        charts.append(line_chart("weight × loss", [_weighted(run.metrics, label) for label in labels]))
    return charts


def score_charts(run: ReportData) -> list[Markup]:
    """Draw the scores during training, if there are any, next to their floors."""
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
    """Return every number that a term logged about itself, with what it should be read against."""
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
    """Draw the curves of the optimization."""
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
    """Return what a loss adds to the objective."""
    rows = [row for row in metrics if f"loss/{label}" in row and f"weight/{label}" in row]
    return Series(label, [row["step"] for row in rows], [row[f"weight/{label}"] * row[f"loss/{label}"] for row in rows])
