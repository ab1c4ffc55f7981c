"""Print the plan of an ablation: arms, runs and cost on one screen, or run ids and every value."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import Console

from sddit.ablations.analysis.results import RunOutcome, read_run
from sddit.ablations.analysis.table import format_changes
from sddit.ablations.planning.arms import Arm
from sddit.ablations.planning.plan import AblationPlan, PlannedRun
from sddit.cli.common import table
from sddit.cli.plan_view import print_all_values
from sddit.errors import printable
from sddit.formatting import format_count, format_duration, format_si

STATES = {"finished": "finished", "failed": "failed", "stopped": "step {step:,}", "waiting": ""}
MAX_ARMS = 30  # lines of a summary


def run_states(plan: AblationPlan) -> list[RunOutcome]:
    """Return the current state of each run."""
    record = plan.record()
    arms = record.by_label
    return [read_run(plan.folder, run, arms[run.arm]) for run in record.runs or ()]


def print_ablation_summary(plan: AblationPlan, out: Console) -> None:
    """Print the question, the budget, the total cost, and a line per arm."""
    rows = run_states(plan)
    out.print(f"{plan.base.name}-{plan.id}", style="bold")
    if plan.settings.question:
        out.print(printable(plan.settings.question))
    out.print(f"budget: {budget_text(plan)}")
    out.print(f"runs: {runs_text(plan, rows)}")
    baselines = list(dict.fromkeys(arm.baseline for arm in plan.arms))
    if len(baselines) == 1:
        out.print(printable(f"baseline: {baselines[0]}"))
    own_baseline = ["compared with"] if len(baselines) > 1 else []
    arms = table("arm", *own_baseline, "runs", "steps", "images", "FLOPs per run", "parameters", "memory", "changes")
    for arm in plan.arms[:MAX_ARMS]:
        compared_with = ["" if arm.baseline == arm.label else arm.baseline] if own_baseline else []
        arms.add_row(*map(printable, (arm.label, *compared_with, *arm_cells(arm, plan, rows))))
    if len(plan.arms) > MAX_ARMS:
        arms.add_row(f"and {len(plan.arms) - MAX_ARMS} more")
    out.print()
    out.print(arms)
    for text, style in plan_notes(plan):
        out.print(printable(text), style=style, soft_wrap=True)
    out.print("\n-n --all lists the id and state of every run, and every value of the baseline", style="dim")


def budget_text(plan: AblationPlan) -> str:
    """Return the budget, such as `1,000 images per arm`."""
    if plan.budget.amount is None:
        return "equal time; the first command measures seconds per step, then the runs get their ids"
    match plan.budget.rule:
        case "images":
            return f"{plan.budget.amount:,.0f} images per arm"
        case "flops":
            return f"{format_si(plan.budget.amount)} training FLOPs per arm"
        case "time":
            return f"{plan.budget.amount:,.0f} seconds of training per arm, at the pace measured before"


def runs_text(plan: AblationPlan, rows: Sequence[RunOutcome]) -> str:
    """Return how many runs there are, how many are finished, and what all of them cost."""
    product = f"{format_count(len(plan.arms), 'arm')} x {format_count(len(plan.settings.seeds), 'seed')}"
    if plan.budget.amount is None:
        return f"{product}, not planned yet"
    done = {row.id for row in rows if row.status == "finished"}
    flops = [arm_of(plan, run).cost.training_flops for run in plan.needed]
    known = [value for value in flops if value is not None]
    total = format_si(sum(known) if len(known) == len(flops) else None, "FLOPs")
    shared = f", {len(plan.needed)} distinct" if len(plan.needed) < len(plan.runs) else ""
    finished = sum(run.id in done for run in plan.needed)
    time = ""
    if plan.budget.rule == "time":
        time = f", {format_duration(plan.budget.amount * len(plan.needed))} one after another"
    return f"{product} = {len(plan.runs)}{shared}; {finished} finished; training {total} in total{time}"


def arm_of(plan: AblationPlan, run: PlannedRun) -> Arm:
    """Return the arm of a run."""
    return next(arm for arm in plan.arms if arm.label == run.arm)


def arm_cells(arm: Arm, plan: AblationPlan, rows: Sequence[RunOutcome]) -> list[str]:
    """Return runs, length, cost and changes of an arm. Its length is open until a budget of time has been measured."""
    own = [row for row in rows if row.arm == arm.label]
    done = sum(row.status == "finished" for row in own)
    failed = sum(row.status == "failed" for row in own)
    runs = f"{done} of {len(own)} finished" if done else f"{len(plan.settings.seeds)}"
    length = [f"{arm.cost.steps:,}", f"{arm.images:,}", format_si(arm.cost.training_flops)]
    return [
        f"{runs}, {failed} failed" if failed else runs,
        *(length if plan.budget.amount is not None else ["by time", "", ""]),
        format_si(arm.parameters),
        format_si(arm.cost.memory.total, "B"),
        format_changes(arm.changes),
    ]


def plan_notes(plan: AblationPlan) -> Iterator[tuple[str, str]]:
    """Yield warnings, keys without effect and unstated costs, each once with its arms, and the style to print it in."""
    notes: dict[tuple[str, str], list[str]] = {}
    for arm in plan.arms:
        for warning in arm.recipe.warnings:
            notes.setdefault((f"warning: {warning}", "yellow"), []).append(arm.label)
        if idle := [key for key in arm.recipe.idle if not any(key in text for text in arm.recipe.warnings)]:
            notes.setdefault((f"no effect here: {', '.join(idle)}", "dim"), []).append(arm.label)
        if arm.cost.not_stated:
            text = f"cost not stated by {', '.join(arm.cost.not_stated)}"
            notes.setdefault((text, "yellow"), []).append(arm.label)
    for (text, style), labels in notes.items():
        yield f"{', '.join(labels)}: {text}", style


def print_ablation_details(plan: AblationPlan, out: Console) -> None:
    """Print every value of the baseline with its origin, and the id and state of every run."""
    baseline = next(arm for arm in plan.arms if arm.label == plan.arms[0].baseline)
    out.print(f"Values of {printable(baseline.label)}, which the arms change as listed below", style="bold")
    print_all_values(baseline.recipe, out)
    rows = {(row.arm, row.seed): row for row in run_states(plan)}
    if not rows:
        return
    runs = table("arm", *(f"seed {seed}" for seed in plan.settings.seeds))
    for arm in plan.arms:
        cells = [rows[arm.label, seed] for seed in plan.settings.seeds]
        runs.add_row(arm.label, *(f"{row.id} {STATES[row.status].format(step=row.steps)}".rstrip() for row in cells))
    out.print()
    out.print(runs)
