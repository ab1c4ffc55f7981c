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

CORE_KEYS = ("loss/", "weight/", "grad_ratio/", SCORE)  # logged by every run; other keys belong to a loss
Row = Mapping[str, float]
State = Literal["healthy", "look here", "no alarm set", "not measured"]
GRADIENT_SPIKE = 10.0  # a gradient norm this many times its average causes a warning
LEADS = 3.0  # a loss whose gradient is this many times that of the first one dominates training


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
    ratios = {
        key: Monitor(key, f"Gradient of loss.{_tail(key)} over that of the first loss", "0.1 to 1", high=LEADS)
        for key in keys_of(metrics)
        if key.startswith("grad_ratio/")
    }
    return own | ratios


def judge(key: str, monitor: Monitor, metrics: Sequence[Row]) -> MonitorResult:
    """Compare the median of a monitor over the last tenth of the run with its healthy range."""
    values = [row[key] for row in metrics if key in row]
    if not values:
        return MonitorResult(key, monitor, None, "not measured", "no value in the metrics")
    last_tenth = values[-max(1, len(values) // 10) :]
    value = median(last_tenth) if all(map(math.isfinite, last_tenth)) else math.nan
    if not math.isfinite(value):
        return MonitorResult(key, monitor, value, "look here", "it is not a finite number")
    if monitor.low is not None and value < monitor.low:
        return MonitorResult(key, monitor, value, "look here", beyond(value, "below", monitor.low))
    if monitor.high is not None and value > monitor.high:
        return MonitorResult(key, monitor, value, "look here", beyond(value, "above", monitor.high))
    if monitor.low is None and monitor.high is None:
        return MonitorResult(key, monitor, value, "no alarm set", "")
    return MonitorResult(key, monitor, value, "healthy", "")


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
