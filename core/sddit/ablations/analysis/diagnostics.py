"""Read the metrics, monitors and environments that the runs of an ablation logged. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from statistics import median

from sddit.ablations.analysis.results import AblationResults
from sddit.errors import SdditError
from sddit.evaluation.monitors import MonitorResult, judge, keys_of, label_of, monitors
from sddit.interfaces import Monitor
from sddit.recipes.merge import leaves
from sddit.storage.metrics_log import read_metrics
from sddit.storage.run_folder import ENVIRONMENT, METRICS, read_json

Log = Sequence[Mapping[str, float]]
"""Lines of one run's `metrics.jsonl`."""
Logs = Mapping[str, Mapping[int, Log]]
"""By arm and seed: the finished runs of each arm, or all started runs if none is finished."""


def logs_of(results: AblationResults) -> Logs:
    """Return the metrics of every arm. A log that cannot be read counts as missing."""
    logs: dict[str, dict[int, Log]] = {arm.label: {} for arm in results.plan.arms}
    for label, own in logs.items():
        runs = results.of(label)
        for run in [run for run in runs if run.status == "finished"] or runs:
            with suppress(OSError, SdditError):
                if log := read_metrics(results.folder / run.folder / METRICS):
                    own[run.seed] = log
    return logs


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """Values of one monitor of one arm, at the end of each of its runs."""

    arm: str
    key: str  # of metrics.jsonl
    monitor: Monitor
    verdicts: Mapping[int, MonitorResult]  # by seed; those that have a value

    @property
    def term(self) -> str:
        """Label of the loss that logs it."""
        return label_of(self.key)

    @property
    def value(self) -> float:
        """Median over seeds."""
        return median(verdict.value for verdict in self.verdicts.values() if verdict.value is not None)

    @property
    def alarms(self) -> list[MonitorResult]:
        """Results of the seeds that raised an alarm."""
        return [verdict for verdict in self.verdicts.values() if verdict.state == "look here"]


def diagnoses(results: AblationResults, logs: Logs) -> list[Diagnosis]:
    """Return the diagnosis of every monitor of every arm."""
    found = []
    for arm in results.plan.arms:
        own = logs[arm.label]
        rows = [{key: 0.0 for log in own.values() for key in keys_of(log)}]  # for its keys
        for key, monitor in monitors(arm.monitors, rows).items():
            read = {seed: judge(key, monitor, log) for seed, log in own.items()}
            verdicts = {seed: verdict for seed, verdict in read.items() if verdict.value is not None}
            if verdicts:
                found.append(Diagnosis(arm.label, key, monitor, verdicts))
    return found


def environments(results: AblationResults) -> dict[str, list[str]]:
    """Return the environments of the runs: every value that occurs, by dotted key."""
    found: dict[str, dict[str, None]] = {}
    for run in results.runs:
        with suppress(SdditError):
            for key, value in leaves(read_json(results.folder / run.folder / ENVIRONMENT)):
                found.setdefault(key, {})[str(value)] = None
    return {key: list(values) for key, values in found.items()}
