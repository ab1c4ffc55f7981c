"""Judge the diagnostics of a run against their healthy range."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal

from sddit.formatting import format_number
from sddit.interfaces import Monitor
from sddit.interfaces.metric_names import SCORE

RATIO = "grad_ratio/"
CORE_KEYS = ("loss/", "weight/", RATIO, SCORE)  # logged by every run; other keys belong to a loss
Row = Mapping[str, float]
State = Literal["healthy", "look here", "no alarm set", "not measured"]
GRADIENT_SPIKE = 10.0  # a gradient norm this many times its average causes a warning
RATIO_RANGE = (0.01, 3.0)
"""Healthy gradients of a loss over that of the first, weights included.

Below 0.01, the loss turns the sum of both by less than 0.6 degrees; above 3, most of the sum is the loss's own. The
shipped losses with a weight of 0.1 are at 0.03 to 0.1.
"""


@dataclass(frozen=True, slots=True)
class MonitorResult:
    """A monitor and its state at the end of the run."""

    key: str  # of metrics.jsonl
    monitor: Monitor
    value: float | None  # median over the last tenth of the run
    state: State
    why: str


def monitors(of_terms: Mapping[str, Sequence[Monitor]], metrics: Sequence[Row]) -> dict[str, Monitor]:
    """Return {key of the metrics: its monitor}: those of the losses, by label, then the ratios of their gradients."""
    own = {f"{label}/{monitor.name}": monitor for label, of_term in of_terms.items() for monitor in of_term}
    low, high = RATIO_RANGE
    ratios = {
        key: Monitor(
            key, f"Gradient of loss.{_tail(key)} over that of the first loss", f"{low:g} to {high:g}", low, high
        )
        for key in keys_of(metrics)
        if key.startswith(RATIO)
    }
    return own | ratios


def losses_without_gradient(metrics: Sequence[Row]) -> list[str]:
    """Return the labels of the losses whose gradient on the network is exactly 0 in every measurement."""
    ratios = {key: [row[key] for row in metrics if key in row] for key in keys_of(metrics) if key.startswith(RATIO)}
    return [label_of(key) for key, values in ratios.items() if not any(values)]


def judge(key: str, monitor: Monitor, metrics: Sequence[Row]) -> MonitorResult:
    """Compare the median of a monitor over the last tenth of the run with its healthy range.

    The gradient of a loss is measured rarely, so its median is over the last half of the measurements, and over those
    alone at which the loss had at least half of its maximum weight.
    """
    rows = [row for row in metrics if key in row]
    if not rows:
        return MonitorResult(key, monitor, None, "not measured", "no value in the metrics")
    if key.startswith(RATIO) and label_of(key) in losses_without_gradient(rows):
        why = "it is 0 in every measurement, so this loss never changed the network"
        return MonitorResult(key, monitor, 0.0, "look here", why)
    values = [row[key] for row in (at_full_weight(key, rows) if key.startswith(RATIO) else rows)]
    end = values[-max(1, len(values) // (2 if key.startswith(RATIO) else 10)) :]
    value = median(end) if all(map(math.isfinite, end)) else math.nan
    if not math.isfinite(value):
        return MonitorResult(key, monitor, value, "look here", "it is not a finite number")
    if monitor.low is not None and value < monitor.low:
        return MonitorResult(key, monitor, value, "look here", beyond(value, "below", monitor.low))
    if monitor.high is not None and value > monitor.high:
        return MonitorResult(key, monitor, value, "look here", beyond(value, "above", monitor.high))
    if monitor.low is None and monitor.high is None:
        return MonitorResult(key, monitor, value, "no alarm set", "")
    return MonitorResult(key, monitor, value, "healthy", "")


def at_full_weight(key: str, rows: Sequence[Row]) -> Sequence[Row]:
    """Return the rows at which the loss that a key belongs to had at least half of its maximum weight."""
    weights = [row.get(f"weight/{label_of(key)}", 0.0) for row in rows]
    largest = max(weights, default=0.0)
    return [row for row, weight in zip(rows, weights, strict=True) if weight >= largest / 2]


def beyond(value: float, word: str, bound: float) -> str:
    """Return `0.01 is below 0.12`, with enough digits to distinguish the numbers."""
    short, long = (format_number(value), format_number(bound)), (f"{value:.6g}", f"{bound:.6g}")
    return f" is {word} ".join(long if short[0] == short[1] else short)


def keys_of(metrics: Sequence[Row]) -> list[str]:
    """Return every key of the metrics, in order of first appearance."""
    return list(dict.fromkeys(key for row in metrics for key in row))


def label_of(key: str) -> str:
    """Return the label of the loss that a key of the metrics belongs to."""
    return _tail(key) if key.startswith(CORE_KEYS) else key.partition("/")[0]


def _tail(key: str) -> str:
    return key.partition("/")[2]


def _bin_order(key: str) -> tuple[int, str]:
    text = key.partition("@")[2]
    return (int(text), "") if text.isdecimal() else (0, text)
