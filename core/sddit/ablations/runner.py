"""Run an ablation: every run a process of its own, several at once, each continued where it stopped.

What is done is read from the run folders, so the same command goes on after anything: a stop, a kill, a run made by hand.
A run that fails is noted with its error, and the others go on.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sddit.ablations.analysis.results import (
    AblationResults,
    forget_failure,
    gather,
    note_failure,
    status_of,
    write_results,
)
from sddit.ablations.planning.arms import Ablation
from sddit.ablations.planning.budget import Pace, unmeasured
from sddit.ablations.planning.leak_check import look_for_leaks
from sddit.ablations.planning.plan import AblationPlan, PlannedRun, folder_of, make_plan, with_threads
from sddit.ablations.planning.records import PLAN, LeakCheck, read_plan
from sddit.distributed.signals import REQUESTS, StopSignals
from sddit.errors import SdditError, error, one_of
from sddit.evaluation.probe import lacks_probe
from sddit.formatting import format_count, format_duration
from sddit.progress import Progress
from sddit.reports.ablation.report import write_report
from sddit.storage.atomic import replace_file, to_json
from sddit.storage.lock import holder
from sddit.storage.metrics_log import last_metrics
from sddit.storage.run_folder import METRICS, RunFolder

RECIPES, LOGS = "recipes", "logs"
POLL = 0.2  # seconds between looks at the running processes
GRACE = 10.0  # seconds that a process has to end when this one ends unasked
STOPPED = {status for number in REQUESTS for status in (128 + number, -number)}
"""Exit statuses of a run that saved and can go on; the negative ones of a run that a signal met before its first line."""


def run_ablation(
    ablation: Ablation, *, out: Path, device: str, progress: Progress, jobs: int = 1, reuse: bool = True
) -> AblationResults:
    """Run what is not finished yet, and gather what came out.

    Args:
        ablation: its arms.
        out: the folder of run folders; the ablation's own, `<name>-<id>`, is among them.
        device: `cpu` or `cuda`, of every run.
        progress: where to show how it goes.
        jobs: processes at once.
        reuse: False makes a copy of its own in which every run is made again; a copy that was stopped is continued.

    Raises:
        SdditError: a problem for the person who typed; a run that fails is none, it stands in the results.
        SystemExit: a signal asked to stop; the runs have saved, and the status is the documented one.
    """
    copy = 1 if reuse else copy_number(ablation, out)
    with RunFolder(folder_of(ablation, out, copy)) as folder, StopSignals() as stop:
        plan = settle(ablation, out, copy, jobs=jobs, device=device, progress=progress)
        folder.write_json(PLAN, plan.to_json())
        waiting = [run for run in plan.needed if not complete(run)]
        announce(plan, len(waiting), progress)
        for run in waiting:
            write_recipe(folder, plan, run)
        run_all(plan, waiting, device=device, jobs=jobs, progress=progress, stop=stop)
        results = gather(plan.folder)
        write_results(results)
        write_report(results)
        if stop.signal is not None:
            progress.note(f"stopped by {stop.signal.name}; the same command continues")
            raise SystemExit(stop.exit_status)
        return results


# --------------------------------------------------------------------------------------------------------------------
# Before the first run
# --------------------------------------------------------------------------------------------------------------------


def copy_number(ablation: Ablation, out: Path) -> int:
    """The further copy to work on: the first one that is not there, or not finished."""
    number = 2
    while (folder_of(ablation, out, number) / PLAN).is_file() and gather(folder_of(ablation, out, number)).finished:
        number += 1
    return number


@dataclass(frozen=True, slots=True)
class Settled:
    """What a first command measures and chooses, and later ones keep."""

    pace: Pace
    threads: int | None
    leaks: Mapping[str, LeakCheck]  # by arm


def settled(ablation: Ablation, out: Path, copy: int = 1) -> Settled | None:
    """What an earlier command settled, for this copy or for the first; None: nothing."""
    for number in (copy, 1):
        path = folder_of(ablation, out, number) / PLAN
        if path.is_file():
            plan = read_plan(path.parent)
            leaks = {arm.label: arm.leaks for arm in plan.arms if arm.leaks}
            return Settled(plan.budget.seconds_per_step, plan.threads, leaks)
    return None


def known_plan(ablation: Ablation, out: Path) -> AblationPlan:
    """The plan as far as it is settled; nothing is measured."""
    known = settled(ablation, out) or Settled({}, None, {})
    return make_plan(ablation, out, pace=known.pace, threads=known.threads, leaks=known.leaks)


def settle(ablation: Ablation, out: Path, copy: int, *, jobs: int, device: str, progress: Progress) -> AblationPlan:
    """The plan with everything decided."""
    known = settled(ablation, out, copy) or Settled({}, threads_for(jobs), {})
    pace = known.pace
    if missing := unmeasured(ablation, pace):
        from sddit.ablations.planning.step_time import seconds_per_step  # torch, which only this rule needs

        pace = {**pace, **seconds_per_step(missing, device=device, threads=known.threads, progress=progress)}
    unseen = [arm for arm in ablation.arms if arm.label not in known.leaks]
    leaks = {**known.leaks, **look_for_leaks(unseen, progress)}
    return make_plan(ablation, out, pace=pace, threads=known.threads, leaks=leaks, copy=copy)


def threads_for(jobs: int) -> int | None:
    """CPU threads of each of several processes at once; one alone has what torch takes by itself."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return None if jobs == 1 else max(1, cores // jobs)


def announce(plan: AblationPlan, waiting: int, progress: Progress) -> None:
    """The first lines: how many runs, how many of them are there already."""
    arms, seeds, needed = (
        format_count(len(plan.arms), "arm"),
        format_count(len(plan.settings.seeds), "seed"),
        len(plan.needed),
    )
    shared = f", {len(plan.runs) - needed} shared" if needed < len(plan.runs) else ""
    progress.note(f"{plan.name}: {arms} x {seeds}, equal {plan.settings.budget}{shared}")
    progress.note(
        f"{format_count(needed, 'run')}, {needed - waiting} of them finished before; results in {plan.folder}"
    )


def complete(run: PlannedRun) -> bool:
    """Whether nothing is left to be done for a run; one that was finished before a probe was asked for gets that."""
    return status_of(run.folder, failed=False) == "finished" and not lacks_probe(run.folder, run.recipe)


def write_recipe(folder: RunFolder, plan: AblationPlan, run: PlannedRun) -> None:
    """What the process of a run reads: its resolved recipe, with one-file plugins beside it."""
    folder.write_json(f"{RECIPES}/{run.folder.name}.json", with_threads(run.recipe, plan.threads).to_json())
    for name, file in run.recipe.plugin_files.items():
        folder.write_bytes(f"{RECIPES}/{Path(name).name}", file.read_bytes())


# --------------------------------------------------------------------------------------------------------------------
# Processes
# --------------------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Child:
    """The process of one run."""

    run: PlannedRun
    process: subprocess.Popen[bytes]
    log: Path  # all that it prints
    began: float


class Queue:
    """The runs that are still to be started. One that another process is at is left to it, and waited for."""

    def __init__(self, runs: Sequence[PlannedRun], progress: Progress) -> None:
        self.runs = list(runs)
        self._progress = progress
        self._held = set[Path]()  # folders of which it was said that another process is at them

    def next_free(self) -> PlannedRun | None:
        """Take the first run that nobody is at; None if there is none by now."""
        for run in list(self.runs):
            if owner := holder(run.folder):
                if run.folder not in self._held:
                    self._progress.note(f"{run.title}: {owner} is at it; waiting for that")
                self._held.add(run.folder)
                continue
            self.runs.remove(run)
            if not complete(run):
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
    """Run what waits, `jobs` at once. A stop is handed on to each process once, and waited for."""
    queue, running, told = Queue(waiting, progress), list[Child](), False
    steps = {run.folder: steps_of(run) for run in plan.needed}
    if waiting:
        progress.stage("training", total=sum(run.recipe.train.steps for run in plan.needed), done=sum(steps.values()))
    try:
        while running or (queue.runs and not stop.requested):
            while len(running) < jobs and not stop.requested and (run := queue.next_free()):
                running.append(start(plan, run, device))
            time.sleep(POLL)
            if stop.signal is not None and not told:
                told = True
                tell(running, stop.signal)
            for child in [child for child in running if child.process.poll() is not None]:
                running.remove(child)
                conclude(plan, child, progress, left=len(queue.runs) + len(running))
            steps |= {run.folder: steps_of(run) for run in (*queue.runs, *(child.run for child in running))}
            progress.advance(sum(steps.values()))
    finally:
        end_all(running)
    if waiting and not stop.requested:
        progress.end_stage()


def start(plan: AblationPlan, run: PlannedRun, device: str) -> Child:
    """Start a run in a session of its own: Ctrl-C reaches this process only, which hands it on."""
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
    """What runs one run; anybody may type it."""
    recipe = plan.folder / RECIPES / f"{run.folder.name}.json"
    return [sys.executable, "-P", "-m", "sddit", str(recipe), "--out", str(run.folder.parent), "--device", device]


def steps_of(run: PlannedRun) -> int:
    """The steps that a run has logged; none in a damaged log, of which its process is going to say more."""
    try:
        return int(last_metrics(run.folder / METRICS).get("step", 0))
    except (SdditError, ValueError, TypeError):
        return 0


def conclude(plan: AblationPlan, child: Child, progress: Progress, left: int) -> None:
    """Say how a process ended; keep why, if it failed."""
    status, title = child.process.returncode, child.run.title
    if status == 0:
        progress.note(f"{title}: finished in {format_duration(time.monotonic() - child.began)}, {left} to go")
    elif status in STOPPED:
        progress.note(f"{title}: stopped after {steps_of(child.run):,} steps, saved")
    else:
        why = reason(child.log, status)
        note_failure(plan.folder, child.run.folder.name, why)
        progress.warn(f"{title} failed: {why}; {child.log}")


def reason(log: Path, status: int) -> str:
    """Why a run failed, in a line: its first error message, else its last words, else what killed it."""
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    errors = [line.removeprefix("error").lstrip(": ") for line in lines if line.startswith("error")]
    if status < 0:
        return f"killed by {signal.Signals(-status).name}"
    return next(iter([*errors, *lines[-1:]]), f"exit status {status}")


def tell(running: Sequence[Child], number: signal.Signals) -> None:
    """Hand a signal on."""
    for child in running:
        child.process.send_signal(number)


def end_all(running: Sequence[Child]) -> None:
    """Leave no process behind, after a second signal or an error of our own."""
    tell(running, signal.SIGTERM)  # saves and ends; where one was told before, ends at once
    for child in running:
        try:
            child.process.wait(GRACE)
        except subprocess.TimeoutExpired:
            child.process.kill()
            child.process.wait()


# --------------------------------------------------------------------------------------------------------------------
# One run of the plan, in this process
# --------------------------------------------------------------------------------------------------------------------


def pick(plan: AblationPlan, id: str) -> PlannedRun:
    """The run of an id. Raises SD-R152 for one that the plan does not have."""
    if plan.budget is None:
        raise error(
            "SD-R153",
            "the time of a step is not measured yet, so the plan has no runs",
            where="--only",
            got='ablation.budget = "time"',
            fix="begin without --only: the first thing done is to measure",
        )
    runs = {run.id: run for run in reversed(plan.runs)}
    if id not in runs:
        fix = "sddit-run -n RECIPE   lists them"
        raise error("SD-R152", f"no run {id!r} in the plan", where="--only", got=id, expect=one_of(id, runs), fix=fix)
    run = runs[id]
    return PlannedRun(run.arm, run.seed, with_threads(run.recipe, plan.threads), run.folder)


@contextmanager
def one_of_plan(plan: AblationPlan, run: PlannedRun) -> Iterator[None]:
    """Around one run of the plan: note its failure, as if the whole plan were run, and bring the results up to date.

    Many of these may run at once, on several machines: each file is put in place whole, and says what the folders say.
    """
    plan.folder.mkdir(parents=True, exist_ok=True)
    if not (plan.folder / PLAN).is_file():
        replace_file(plan.folder / PLAN, to_json(plan.to_json(), indent=1).encode())
    forget_failure(plan.folder, run.folder.name)
    try:
        yield
    except SdditError as failure:
        problem = failure.problems[0]
        got = f" ({problem.got})" if problem.got else ""
        note_failure(plan.folder, run.folder.name, f"{problem.code}: {problem.what}{got}")
        raise
    except Exception as failure:
        note_failure(plan.folder, run.folder.name, f"{type(failure).__name__}: {failure}")
        raise
    finally:
        results = gather(plan.folder)
        write_results(results)
        write_report(results)
