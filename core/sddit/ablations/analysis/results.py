"""What the runs of an ablation came to: one row a run, read from the run folders each time. No torch.

`results.jsonl` is these rows as they were when the ablation's command last ended; only that of a published ablation, whose run
folders are elsewhere, is read.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from sddit.ablations.planning.plan import PLAN
from sddit.errors import SdditError
from sddit.interfaces.metric_names import numbers
from sddit.storage import run_folder
from sddit.storage.atomic import replace_file, to_json
from sddit.storage.metrics_log import last_metrics
from sddit.storage.run_folder import COST, METRICS, REPORT, SCORES

RESULTS = "results.jsonl"
FAILURES = "failures"

Status = Literal["finished", "failed", "stopped", "waiting"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One run. Figures are what its folder holds by now; None is not known."""

    arm: str
    seed: int
    id: str
    status: Status
    steps: int
    images: int
    flops: float | None  # of training, by formula
    seconds: float  # of training
    images_per_second: float | None
    peak_memory: float | None  # bytes
    scores: Mapping[str, float] = field(default_factory=dict)  # "classifier.fd"
    folder: str  # from the ablation's folder
    error: str = ""  # why it failed


@dataclass(frozen=True, slots=True)
class Results:
    """An ablation's folder as it stands."""

    folder: Path
    plan: Mapping[str, Any]  # plan.json
    rows: tuple[Row, ...]

    @property
    def finished(self) -> bool:
        """Whether every run is."""
        return all(row.status == "finished" for row in self.rows)

    def of(self, arm: str) -> list[Row]:
        """The rows of one arm."""
        return [row for row in self.rows if row.arm == arm]

    def figure(self, arm: str, metric: str) -> dict[int, float]:
        """A metric of an arm by seed; only finished runs have one."""
        rows = [row for row in self.of(arm) if row.status == "finished" and metric in row.scores]
        return {row.seed: row.scores[metric] for row in rows}


def gather(folder: Path) -> Results:
    """The rows of an ablation's folder, or of a published one. Raises SD-F704 for a plan that cannot be read."""
    plan = read_json(folder / PLAN)
    if "runs" not in plan:
        return Results(folder, plan, tuple(published_rows(folder / RESULTS)))
    arms = {arm["label"]: arm for arm in plan["arms"]}
    return Results(folder, plan, tuple(readable(folder, run, arms[run["arm"]]) for run in plan["runs"]))


def published_rows(path: Path) -> Iterator[Row]:
    """The rows as they were published, whose run folders are elsewhere."""
    known = {one.name for one in fields(Row)} - {"folder"}
    for line in path.read_text(encoding="utf-8").splitlines():
        yield Row(**{key: value for key, value in json.loads(line).items() if key in known}, folder="")


def readable(folder: Path, run: Mapping[str, Any], arm: Mapping[str, Any]) -> Row:
    """The row of a run; that of a damaged folder says so, and the others stand."""
    try:
        return row_of(folder, run, arm)
    except (SdditError, OSError, ValueError, TypeError, LookupError, AttributeError) as fault:
        said = fault.problems[0].what if isinstance(fault, SdditError) else type(fault).__name__
        return Row(
            **{key: run[key] for key in ("arm", "seed", "id", "folder")},
            status="failed",
            steps=0,
            images=0,
            flops=None,
            seconds=0.0,
            images_per_second=None,
            peak_memory=None,
            error=f"its folder is damaged: {said}",
        )


def flops_until(arm: Mapping[str, Any], step: float) -> float | None:
    """What a run of an arm has spent after so many steps; None where its components do not state it.

    Steps differ where a ramp hides tokens or a term ends: the plan has their cost in equal parts of the run.
    """
    whole_run: float | None = arm["flops"]
    if whole_run is None or step >= arm["steps"]:
        return whole_run
    course: list[float] = arm.get("flops_course") or [arm["flops_per_step"]]  # earlier versions' plans have none
    share: float = arm["steps"] / len(course)  # steps of a part
    whole = min(int(step / share), len(course) - 1)  # rounding may reach the end before the step does
    return sum(course[:whole]) * share + (step - whole * share) * course[whole]


def row_of(folder: Path, run: Mapping[str, Any], arm: Mapping[str, Any]) -> Row:
    """What the folder of one run says, beside what the plan says of its arm."""
    place = folder / run["folder"]
    last, failure = last_metrics(place / METRICS), failure_of(folder, place.name)
    status = status_of(place, bool(failure))
    steps, seconds = int(last.get("step", 0)), last.get("seconds", 0.0)
    images = steps * arm["batch"]
    cost = read_json(place / COST) if status == "finished" and (place / COST).is_file() else {}
    return Row(
        arm=run["arm"],
        seed=run["seed"],
        id=run["id"],
        status=status,
        steps=steps,
        images=images,
        flops=flops_until(arm, steps),
        seconds=seconds,
        images_per_second=images / seconds if seconds else None,
        peak_memory=cost.get("peak_memory"),
        scores=scores_of(place) if status == "finished" else {},
        folder=run["folder"],
        error=failure if status == "failed" else "",
    )


def status_of(run: Path, failed: bool) -> Status:
    """Finished wins: what failed once may have been repeated by hand."""
    if (run / REPORT).is_file():
        return "finished"
    return "failed" if failed else "stopped" if (run / METRICS).is_file() else "waiting"


def scores_of(run: Path) -> dict[str, float]:
    """Every number of `scores.json`, as `extractor.figure`."""
    path = run / SCORES
    scores: Mapping[str, Mapping[str, Any]] = read_json(path) if path.is_file() else {}
    return {
        f"{label}.{key}": float(value)
        for label, figures in scores.items()
        for key, value in numbers(figures)
        if isinstance(value, int | float) and math.isfinite(value)
    }


# --------------------------------------------------------------------------------------------------------------------
# Files of the ablation's folder
# --------------------------------------------------------------------------------------------------------------------


def write_results(results: Results) -> Path:
    """`results.jsonl`, whole or not at all."""
    path = results.folder / RESULTS
    replace_file(path, "".join(f"{to_json(asdict(row))}\n" for row in results.rows).encode())
    return path


def note_failure(folder: Path, run: str, text: str) -> None:
    """Keep why a run failed, by the name of its folder."""
    (folder / FAILURES).mkdir(parents=True, exist_ok=True)
    replace_file(folder / FAILURES / f"{run}.txt", text.encode())


def forget_failure(folder: Path, run: str) -> None:
    """The run is tried again."""
    (folder / FAILURES / f"{run}.txt").unlink(missing_ok=True)


def failure_of(folder: Path, run: str) -> str:
    """Why a run failed when it was last tried; empty if it did not."""
    path = folder / FAILURES / f"{run}.txt"
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def read_json(path: Path) -> Any:
    """A JSON file of an ablation or a run. Raises SD-F704 where it is not what this program wrote."""
    return run_folder.read_json(path, fix="put a copy back")
