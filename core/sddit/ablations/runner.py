"""Run an ablation: every run in a process of its own, several at once, each resumed where it stopped.

The state of each run is read from its folder, so that the same command resumes after a stop, a kill, or a run started
by hand. The error of a failed run is recorded, and the other runs continue.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sddit import __numerics__
from sddit.ablations.analysis.results import (
    AblationResults,
    forget_failure,
    gather,
    note_failure,
    write_results,
)
from sddit.ablations.planning import measurements
from sddit.ablations.planning.arms import Ablation
from sddit.ablations.planning.budget import unmeasured
from sddit.ablations.planning.measurements import Measurements
from sddit.ablations.planning.plan import AblationPlan, PlannedRun, folder_of, make_plan, runs_of_other_numerics
from sddit.ablations.planning.records import PLAN, read_plan
from sddit.distributed.signals import REQUESTS, StopSignals
from sddit.errors import SdditError, error, one_of
from sddit.evaluation.probe import lacks_probe
from sddit.formatting import format_count, format_duration
from sddit.progress import Progress
from sddit.storage.atomic import replace_file, to_json
from sddit.storage.lock import holder
from sddit.storage.metrics_log import logged_steps
from sddit.storage.run_folder import METRICS, RunFolder
from sddit.storage.run_result import result_damage

RECIPES, LOGS = "recipes", "logs"
POLL = 0.2  # seconds between checks of the running processes
GRACE = 10.0  # seconds that a process has to end when this one fails
WriteReport = Callable[[AblationResults], object]
"""Writes `report.html` from the results; given by the caller, since reports are a layer above."""

STOPPED = {status for number in REQUESTS for status in (128 + number, -number)}
"""Exit statuses of a run that saved and can be resumed; negative if the signal came before its first line."""


def run_ablation(
    ablation: Ablation,
    *,
    out: Path,
    device: str,
    progress: Progress,
    write_report: WriteReport,
    jobs: int = 1,
    reuse: bool = True,
) -> AblationResults:
    """Execute the runs that are not finished yet, and write and return the results.

    Args:
        out: folder of run folders; the ablation's own, `<name>-<id>`, is one of them.
        write_report: writes the report at the end, also after a stop.
        jobs: number of processes at once.
        reuse: False repeats every run in a copy of its own; a stopped copy is resumed.

    Raises:
        SdditError: a problem that the user can fix. A failed run does not raise; it is part of the results.
        SystemExit: a signal asked to stop; the runs have saved, and the status is the documented one.
    """
    copy = 1 if reuse else copy_number(ablation, out)
    with RunFolder(folder_of(ablation, out, copy)) as folder, StopSignals() as stop:
        plan = finalize_plan(ablation, out, copy, jobs=jobs, device=device, progress=progress)
        folder.write_json(PLAN, plan.record().to_json())
        waiting = [run for run in plan.needed if not complete(run, plan.settings.metrics)]
        announce(plan, len(waiting), progress)
        for run in waiting:
            folder.write_json(f"{RECIPES}/{run.folder.name}.json", run.recipe.to_json())
            for name, file in run.recipe.plugin_files.items():
                folder.write_bytes(f"{RECIPES}/{Path(name).name}", file.read_bytes())
        run_all(plan, waiting, device=device, jobs=jobs, progress=progress, stop=stop)
        results = write_results(plan.folder)
        write_report(results)
        if stop.signal is not None:
            progress.note(f"stopped by {stop.signal.name}; rerun the same command to resume")
            raise SystemExit(stop.exit_status)
        return results


def copy_number(ablation: Ablation, out: Path) -> int:
    """Return the number of the first further copy that does not exist or is not finished."""
    number = 2
    while (folder_of(ablation, out, number) / PLAN).is_file() and gather(folder_of(ablation, out, number)).finished:
        number += 1
    return number


def earlier_measurements(ablation: Ablation, out: Path, copy: int = 1) -> Measurements | None:
    """Return what an earlier command measured for this copy or for the first; None without an earlier command."""
    for number in (copy, 1):
        folder = folder_of(ablation, out, number)
        if (folder / PLAN).is_file():
            plan = read_plan(folder)
            leaks = {arm.label: arm.leaks for arm in plan.arms if arm.leaks}
            return Measurements(plan.budget.seconds_per_step, plan.threads, leaks)
    return None


def known_plan(ablation: Ablation, out: Path) -> AblationPlan:
    """Return the plan as far as it is known without measuring."""
    return make_plan(ablation, out, earlier_measurements(ablation, out))


def finalize_plan(
    ablation: Ablation, out: Path, copy: int, *, jobs: int, device: str, progress: Progress
) -> AblationPlan:
    """Return the complete plan. Measures the time of a step and tests for leaks where that is not known yet."""
    known = earlier_measurements(ablation, out, copy) or Measurements(threads=threads_for(jobs))
    pace = known.pace
    if missing := unmeasured(ablation, pace):
        measured = measurements.seconds_per_step(missing, device=device, threads=known.threads, progress=progress)
        pace = {**pace, **measured}
    untested = [arm for arm in ablation.arms if arm.label not in known.leaks]
    leaks = {**known.leaks, **measurements.check_for_leaks(untested, progress)}
    return make_plan(ablation, out, Measurements(pace, known.threads, leaks), copy=copy)


def threads_for(jobs: int) -> int | None:
    """Return the CPU threads of each process; None (torch's default) for a single one."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return None if jobs == 1 else max(1, cores // jobs)


def announce(plan: AblationPlan, waiting: int, progress: Progress) -> None:
    """Print the number of runs, and how many of them are finished."""
    arms, seeds = format_count(len(plan.arms), "arm"), format_count(len(plan.settings.seeds), "seed")
    needed = len(plan.needed)
    shared = f", {len(plan.runs) - needed} shared" if needed < len(plan.runs) else ""
    progress.note(f"{plan.base.name}: {arms} x {seeds}, equal {plan.settings.budget}{shared}")
    if others := [run for one in plan.needed for run in runs_of_other_numerics(one)]:
        progress.warn(
            f"not used: {format_count(len(others), 'run')} of another numerics revision than {__numerics__}, "
            f"whose bits differ: {others[0]}"
        )
    progress.note(
        f"{format_count(needed, 'run')}, {needed - waiting} of them already finished; results in {plan.folder}"
    )


def complete(run: PlannedRun, metrics: Sequence[str]) -> bool:
    """Return whether the result of a run is complete, including the probe if the recipe asks for one."""
    damage = result_damage(run.folder, run.id, run.recipe.features, metrics)
    return not damage and not lacks_probe(run.folder, run.recipe)


@dataclass(slots=True)
class Child:
    """The process of one run."""

    run: PlannedRun
    process: subprocess.Popen[bytes]
    log: Path  # its output
    started: float


def next_free(plan: AblationPlan, queue: list[PlannedRun], locked: set[Path], progress: Progress) -> PlannedRun | None:
    """Remove and return the first unfinished run that no other process has locked; None if there is none."""
    for run in list(queue):
        if owner := holder(run.folder):
            if run.folder not in locked:  # report each lock once
                progress.note(f"{run.title}: locked by {owner}; waiting")
            locked.add(run.folder)
            continue
        queue.remove(run)
        if not complete(run, plan.settings.metrics):
            return run
    return None


def run_all(
    plan: AblationPlan,
    waiting: Sequence[PlannedRun],
    *,
    device: str,
    jobs: int,
    progress: Progress,
    stop: StopSignals,
) -> None:
    """Execute the waiting runs, `jobs` at once. Forward a stop to each process once, and wait for them."""
    queue, locked, running, stopping = list(waiting), set[Path](), list[Child](), False
    steps = {run.folder: logged_steps(run.folder / METRICS) for run in plan.needed}
    if waiting:
        progress.stage("training", total=sum(run.recipe.train.steps for run in plan.needed), done=sum(steps.values()))
    try:
        while running or (queue and not stop.requested):
            while len(running) < jobs and not stop.requested and (run := next_free(plan, queue, locked, progress)):
                running.append(start(plan, run, device))
            time.sleep(POLL)
            if stop.signal is not None and not stopping:
                stopping = True
                for child in running:
                    child.process.send_signal(stop.signal)
            for child in [child for child in running if child.process.poll() is not None]:
                running.remove(child)
                record_end(plan, child, progress, left=len(queue) + len(running))
            for run in (*queue, *(child.run for child in running)):
                steps[run.folder] = logged_steps(run.folder / METRICS)
            progress.advance(sum(steps.values()))
    finally:
        end_all(running)
    if waiting and not stop.requested:
        progress.end_stage()


def start(plan: AblationPlan, run: PlannedRun, device: str) -> Child:
    """Start a run in a session of its own: Ctrl-C reaches this process only, which forwards it."""
    forget_failure(plan.folder, run.folder.name)
    log = plan.folder / LOGS / f"{run.folder.name}.txt"
    log.parent.mkdir(exist_ok=True)
    with log.open("wb") as out:
        process = subprocess.Popen(
            command(plan, run, device),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    return Child(run, process, log, time.monotonic())


def command(plan: AblationPlan, run: PlannedRun, device: str) -> list[str]:
    """Return the command line of one run; it can also be executed by hand."""
    recipe = plan.folder / RECIPES / f"{run.folder.name}.json"
    return [sys.executable, "-P", "-m", "sddit", str(recipe), "--out", str(run.folder.parent), "--device", device]


def record_end(plan: AblationPlan, child: Child, progress: Progress, left: int) -> None:
    """Print how a process ended, and record the error if it failed."""
    status, title = child.process.returncode, child.run.title
    if status == 0 and complete(child.run, plan.settings.metrics):
        progress.note(f"{title}: finished in {format_duration(time.monotonic() - child.started)}, {left} left")
    elif status in STOPPED:
        progress.note(f"{title}: stopped after {logged_steps(child.run.folder / METRICS):,} steps, saved")
    else:
        why = failure_reason(child.log, status)
        if status == 0:
            why = f"the process ended with status 0 before the run was finished; its last line: {why}"
        note_failure(plan.folder, child.run.folder.name, why)
        progress.warn(f"{title} failed: {why}; {child.log}")


def failure_reason(log: Path, status: int) -> str:
    """Return in a line why a run failed: the signal, its first error message, or its last line."""
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    errors = [line.removeprefix("error").lstrip(": ") for line in lines if line.startswith("error")]
    if status < 0:
        return f"killed by {signal.Signals(-status).name}"
    return next(iter([*errors, *lines[-1:]]), f"exit status {status}")


def end_all(running: Sequence[Child]) -> None:
    """End all processes, after a second signal or an error in this process."""
    for child in running:
        child.process.send_signal(signal.SIGTERM)  # a first signal: save and end; a second one: end at once
    for child in running:
        try:
            child.process.wait(GRACE)
        except subprocess.TimeoutExpired:
            child.process.kill()
            child.process.wait()


def pick(plan: AblationPlan, id: str) -> PlannedRun:
    """Return the run of an id. Raises SD-R152 if the plan has no such run, SD-R153 if it has no runs yet."""
    if plan.budget.amount is None:
        raise error(
            "SD-R153",
            "the time of a step is not measured yet, so the plan has no runs",
            where="--only",
            got='ablation.budget = "time"',
            fix="start without --only, which measures first",
        )
    runs = {run.id: run for run in reversed(plan.runs)}
    if id not in runs:
        fix = "run  sddit-run -n RECIPE --all  to list them"
        raise error("SD-R152", f"no run {id!r} in the plan", where="--only", got=id, expect=one_of(id, runs), fix=fix)
    return runs[id]


@contextmanager
def one_of_plan(plan: AblationPlan, run: PlannedRun, write_report: WriteReport) -> Iterator[None]:
    """Record the failure of one run in the block, as a command for all runs would, and update results and report.

    Several of these may run at once, on several machines: files are replaced atomically and follow from the run
    folders.
    """
    plan.folder.mkdir(parents=True, exist_ok=True)
    if not (plan.folder / PLAN).is_file():
        replace_file(plan.folder / PLAN, to_json(plan.record().to_json(), indent=1).encode())
    forget_failure(plan.folder, run.folder.name)
    try:
        yield
    except Exception as failure:
        why = f"{type(failure).__name__}: {failure}"
        if isinstance(failure, SdditError):
            problem = failure.problems[0]
            why = f"{problem.code}: {problem.what}" + (f" ({problem.got})" if problem.got else "")
        note_failure(plan.folder, run.folder.name, why)
        raise
    else:
        if not complete(run, plan.settings.metrics):
            note_failure(plan.folder, run.folder.name, "it ended before the run was finished")
    finally:
        write_report(write_results(plan.folder))
