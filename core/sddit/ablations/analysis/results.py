"""Read the results of an ablation from its run folders, one record per run. No torch.

`results.jsonl` holds these records as of the end of the last command. It is read only for a published ablation, which
has no run folders.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from sddit.ablations.planning.records import PLAN, ArmRecord, PlanRecord, RunRecord, first_problem, read_plan
from sddit.data.undecoded import samples_are_undecoded
from sddit.errors import SdditError
from sddit.evaluation.monitors import losses_without_gradient
from sddit.interfaces.metric_names import metric_values
from sddit.storage.atomic import read_file, replace_file, to_json
from sddit.storage.metrics_log import last_metrics, read_metrics
from sddit.storage.output_folder import unchanged_output
from sddit.storage.run_folder import COST, METRICS, REPORT, SCORES, read_json, recorded_ids, unreadable_error
from sddit.storage.run_result import non_finite_scores, result_damage

RESULTS = "results.jsonl"
FAILURES = "failures"

Status = Literal["finished", "failed", "stopped", "waiting"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOutcome:
    """Outcome of one run so far: a line of `results.jsonl`. None: not known."""

    arm: str
    seed: int
    id: str
    status: Status
    steps: int = 0
    images: int = 0
    flops: float | None = None  # of training, by formula
    seconds: float = 0.0  # of training
    images_per_second: float | None = None
    peak_memory: float | None = None  # bytes
    scores: Mapping[str, float] = field(default_factory=dict)  # "classifier.fd"
    without_gradient: tuple[str, ...] = ()  # losses whose gradient on the network was 0 in every measurement
    folder: str = ""  # relative to the ablation's folder; empty in a publication
    error: str = ""  # why it failed

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class AblationResults:
    """The plan of an ablation and the outcome of each run so far."""

    folder: Path
    plan: PlanRecord
    runs: tuple[RunOutcome, ...]

    @property
    def finished(self) -> bool:
        """Return whether every run is finished."""
        return all(run.status == "finished" for run in self.runs)

    def of(self, arm: str) -> list[RunOutcome]:
        """Return the runs of one arm."""
        return [run for run in self.runs if run.arm == arm]

    def finished_of(self, arm: str) -> list[RunOutcome]:
        """Return the finished runs of one arm."""
        return [run for run in self.of(arm) if run.status == "finished"]

    def without_gradient(self, arm: str) -> list[str]:
        """Return the losses that changed the network in no finished run of an arm."""
        finished = self.finished_of(arm)
        labels = dict.fromkeys(label for run in finished for label in run.without_gradient)
        return [label for label in labels if all(label in run.without_gradient for run in finished)]

    def untested_losses(self, arm: ArmRecord) -> list[str]:
        """Return the losses by which an arm differs from its baseline and that never changed the network."""
        own, base = self.without_gradient(arm.label), self.without_gradient(arm.baseline)
        return [
            label
            for label in dict.fromkeys([*own, *base])
            if not (label in own and label in base) or arm.differing(f"loss.{label}.")
        ]

    def figure(self, arm: str, metric: str) -> dict[int, float]:
        """Return a metric of an arm by seed; only finished runs have one."""
        return {run.seed: run.scores[metric] for run in self.finished_of(arm) if metric in run.scores}


def gather(folder: Path) -> AblationResults:
    """Return the results of an ablation's folder or a published one.

    Raises SD-F704 if the plan or the published results cannot be read, SD-F713 if a publication is not complete.
    """
    with unchanged_output(folder):
        plan = read_plan(folder)
        if plan.runs is None:
            return AblationResults(folder, plan, tuple(published_runs(folder / RESULTS, plan)))
    arms = plan.by_label
    return AblationResults(folder, plan, tuple(read_run(folder, run, arms[run.arm], plan.metrics) for run in plan.runs))


def published_runs(path: Path, plan: PlanRecord) -> Iterator[RunOutcome]:
    """Yield the runs of a publication. Raises SD-F704 for a line that is not a run of the plan."""
    fix = "restore it from a backup, or publish the ablation again"
    try:
        lines = read_file(path).splitlines()
    except OSError as fault:
        raise unreadable_error(path, fault.strerror or str(fault), fix) from fault
    if not lines:
        raise unreadable_error(path, "an empty file", fix)
    seen: set[tuple[str, int]] = set()
    for number, line in enumerate(lines, 1):
        try:
            run = TypeAdapter(RunOutcome).validate_python(json.loads(line))
        except ValidationError as fault:
            got = f"{first_problem(fault)}, in {line[:60].decode(errors='replace')}"
        except (ValueError, RecursionError):
            got = f"not JSON: {line[:60].decode(errors='replace')}"
        else:
            if run.arm in plan.labels and run.seed in plan.seeds and (run.arm, run.seed) not in seen:
                seen.add((run.arm, run.seed))
                yield run
                continue
            got = f"arm {run.arm!r} with seed {run.seed}, which is not in {PLAN} or in an earlier line"
        raise unreadable_error(path.with_name(f"{path.name}:{number}"), got, fix)


def write_results(folder: Path) -> AblationResults:
    """Return the results as the run folders are now, after writing them to `results.jsonl`."""
    results = gather(folder)
    replace_file(folder / RESULTS, "".join(f"{to_json(run.to_json())}\n" for run in results.runs).encode())
    return results


def read_run(folder: Path, run: RunRecord, arm: ArmRecord, metrics: Sequence[str] = ()) -> RunOutcome:
    """Return the outcome of a run. A damaged run folder counts as a failed run and does not affect the others."""
    try:
        return outcome_of(folder, run, arm, metrics)
    except (SdditError, OSError, ValueError, TypeError, LookupError, AttributeError) as fault:
        what = fault.problems[0].what if isinstance(fault, SdditError) else type(fault).__name__
        return RunOutcome(**asdict(run), status="failed", error=f"its folder is damaged: {what}")


def outcome_of(folder: Path, run: RunRecord, arm: ArmRecord, metrics: Sequence[str] = ()) -> RunOutcome:
    """Read the outcome of a run from its folder. Without finite values of all `metrics`, it counts as failed."""
    path = folder / run.folder
    last, failure = last_metrics(path / METRICS), failure_of(folder, path.name)
    status = status_of(path, bool(failure))
    if status == "finished" and (damage := damage_of(path, run.id, metrics)):
        status, failure = "failed", damage
    steps, seconds = int(last.get("step", 0)), last.get("seconds", 0.0)
    images = steps * arm.batch
    cost = read_json(path / COST) if status == "finished" and (path / COST).is_file() else {}
    return RunOutcome(
        **asdict(run),
        status=status,
        steps=steps,
        images=images,
        flops=arm.flops_until(steps),
        seconds=seconds,
        images_per_second=images / seconds if seconds else None,
        peak_memory=cost.get("peak_memory"),
        scores=scores_of(path) if status == "finished" else {},
        without_gradient=without_gradient(path) if status == "finished" else (),
        error=failure if status == "failed" else "",
    )


def status_of(run: Path, failed: bool) -> Status:
    """Return the status of a run. A finished one may have failed before, and been repeated by hand."""
    if (run / REPORT).is_file():
        return "finished"
    return "failed" if failed else "stopped" if (run / METRICS).is_file() else "waiting"


def damage_of(run: Path, id: str, metrics: Sequence[str]) -> str:
    """Return why the result in the folder of a run does not count; empty if it does."""
    recorded = recorded_ids(run)
    if recorded and recorded[0] != id:
        return f"its folder holds run {recorded[0]}, not {id}"
    labels = dict.fromkeys(metric.rpartition(".")[0] for metric in metrics)
    if damage := result_damage(run, id, labels, metrics, numbers_only=True):
        return f"{damage}; the command of the ablation scores it again"
    bad = dict(non_finite_scores(read_json(run / SCORES)))
    return next((f"{metric} is {bad[metric]}" for metric in metrics if metric in bad), "")


def scores_of(run: Path) -> dict[str, float]:
    """Return every number of `scores.json`, by `extractor.metric`; none of latents, which an earlier version scored."""
    path = run / SCORES
    scored = path.is_file() and not samples_are_undecoded(run)
    scores: Mapping[str, Mapping[str, Any]] = read_json(path) if scored else {}
    return {
        f"{label}.{key}": float(value)
        for label, figures in scores.items()
        for key, value in metric_values(figures)
        if isinstance(value, int | float) and math.isfinite(value)
    }


def without_gradient(run: Path) -> tuple[str, ...]:
    """Return the labels of the losses that never changed the network; none for a log that cannot be read."""
    try:
        return tuple(losses_without_gradient(read_metrics(run / METRICS)))
    except (OSError, SdditError):
        return ()


def note_failure(folder: Path, run: str, text: str) -> None:
    """Record why a run failed, by the name of its folder."""
    (folder / FAILURES).mkdir(parents=True, exist_ok=True)
    replace_file(folder / FAILURES / f"{run}.txt", text.encode())


def forget_failure(folder: Path, run: str) -> None:
    """Remove the record of a failure, before the run is tried again."""
    (folder / FAILURES / f"{run}.txt").unlink(missing_ok=True)


def failure_of(folder: Path, run: str) -> str:
    """Return why the last attempt of a run failed; empty if it did not."""
    path = folder / FAILURES / f"{run}.txt"
    return path.read_text(encoding="utf-8") if path.is_file() else ""
