"""The charts in the report of a run: losses, scores, noise levels, diagnostics, optimisation."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from sddit.evaluation.monitors import CORE_KEYS, RATIO, RATIO_RANGE, Row, _bin_order, keys_of, label_of, monitors
from sddit.interfaces.metric_names import KNOWN_METRICS, SCORE
from sddit.reports.charts import Reference, Series, are_positive, levels, line_chart
from sddit.reports.run.run_data import ReportData


def loss_charts(run: ReportData) -> list[Markup]:
    """Return a chart of each loss, then one of all of them as they are weighted."""
    labels = [label_of(key) for key in keys_of(run.metrics) if key.startswith("loss/") and "@" not in key]
    charts = [line_chart(f"loss.{label}", [_series(run.metrics, f"loss/{label}", label)]) for label in labels]
    if len(labels) > 1:
        weighted = [
            {"step": row["step"]} | {label: row[f"weight/{label}"] * row[f"loss/{label}"]}
            for label in labels
            for row in run.metrics
            if f"loss/{label}" in row and f"weight/{label}" in row
        ]
        charts.append(line_chart("weight × loss", [_series(weighted, label, label) for label in labels]))
    return charts


def score_charts(run: ReportData) -> list[Markup]:
    """Return a chart of each score that was measured more than once, with its floor."""
    charts = []
    for key in keys_of(run.metrics):
        label, _, figure = key.removeprefix(SCORE).rpartition(".")
        if not key.startswith(SCORE) or sum(key in row for row in run.metrics) < 2:
            continue
        title = f"{run.scores[label].title if label in run.scores else label}: {KNOWN_METRICS[figure].title}"
        floor = getattr(run.scores.get(label), f"{figure}_floor", None)
        references = [] if floor is None else [Reference("unseen real images", floor)]
        series = [_series(run.metrics, key, title)]
        charts.append(line_chart(title, series, log_y=figure == "fd", references=references))
    return charts


def average_charts(run: ReportData) -> list[Markup]:
    """Return a chart per extractor of the distance of averages against their width, a line per step."""
    charts = []
    for label, scores in run.averages[0].scores.items() if run.averages else ():
        series = []
        for step in dict.fromkeys(one.step for one in run.averages):
            scored = [one for one in run.averages if one.step == step and label in one.scores]
            distances = [one.scores[label].fd for one in scored]
            series.append(Series(f"step {step:,}", [one.sigma_rel for one in scored], distances))
        title = f"{scores.title}: {KNOWN_METRICS['fd'].title}"
        floor = [Reference("unseen real images", scores.fd_floor)]
        charts.append(line_chart(title, series, x_label="sigma_rel", log_y=are_positive(series), references=floor))
    return charts


def noise_charts(run: ReportData) -> list[Markup]:
    """Return a chart of each loss with one line per noise level, least noise first."""
    by_loss: dict[str, list[str]] = {}
    for key in keys_of(run.metrics):
        if key.startswith("loss/") and "@" in key:
            by_loss.setdefault(label_of(key).partition("@")[0], []).append(key)
    charts = []
    for label, keys in by_loss.items():
        named = len(run.noise_bins) == len(keys)
        names = run.noise_bins if named else [f"level {i + 1} of {len(keys)}" for i in range(len(keys))]
        pairs = zip(sorted(keys, key=_bin_order), names, strict=True)
        charts.append(line_chart(f"loss.{label} by noise level", [_series(run.metrics, *pair) for pair in pairs]))
    return charts


def diagnostic_charts(run: ReportData) -> list[Markup]:
    """Return a chart of each number that a loss logged about itself, with the levels to read it against."""
    known = monitors(run.monitors, run.metrics)
    return [
        line_chart(
            known[key].title if key in known else key,
            [_series(run.metrics, key, key)],
            references=levels(known[key]) if key in known else (),
        )
        for key in keys_of(run.metrics)
        if "/" in key and not key.startswith(CORE_KEYS)
    ]


def optimization_charts(run: ReportData) -> list[Markup]:
    """Return charts of gradient norm, learning rate and speed, and of the gradients of the losses."""
    names = {"grad_norm": "gradient norm", "lr": "learning rate", "images_per_second": "images per second"}
    present = keys_of(run.metrics)
    charts = [
        line_chart(title, [_series(run.metrics, key, title)], log_y=key == "grad_norm")
        for key, title in names.items()
        if key in present
    ]
    if series := [_series(run.metrics, key, label_of(key)) for key in present if key.startswith(RATIO)]:
        references = [Reference("alarm below", RATIO_RANGE[0]), Reference("alarm above", RATIO_RANGE[1])]
        title, log_y = "gradient of a loss over that of the first", are_positive(series)
        charts.append(line_chart(title, series, references=references, log_y=log_y))
    return charts


def _series(metrics: Sequence[Row], key: str, name: str) -> Series:
    rows = [row for row in metrics if key in row]
    return Series(name, [row["step"] for row in rows], [row[key] for row in rows])
