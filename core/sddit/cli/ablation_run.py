"""Execute the runs of an ablation, and print its plan and its results."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import Console

from sddit.ablations.analysis.results import AblationResults, RunOutcome, read_run
from sddit.ablations.analysis.table import cells, comparisons, format_changes
from sddit.ablations.planning.arms import Ablation, Arm
from sddit.ablations.planning.plan import AblationPlan
from sddit.ablations.planning.records import PlanRecord
from sddit.cli.options import RunOptions
from sddit.cli.output import console, echo, error_console, print_json, print_table, show_progress, table, work_console
from sddit.cli.plan_view import plan_notes, print_all_values
from sddit.errors import error, printable
from sddit.formatting import format_count, format_duration, format_si
from sddit.reports.ablation.phrases import floors_sentence, interval_note
from sddit.reports.rendering import sentence
from sddit.storage.run_folder import REPORT

STATES = {"finished": "finished", "failed": "failed", "stopped": "step {step:,}", "waiting": ""}
MAX_ARMS = 30  # lines of a summary


def run_all(ablation: Ablation, options: RunOptions) -> None:
    """Execute the unfinished runs, then print the table. Raises SD-X810 if one is not finished after that."""
    from sddit.ablations.runner import run_ablation
    from sddit.reports.ablation.ablation_report import write_report

    with show_progress(error_console() if options.as_json else work_console()) as progress:
        results = run_ablation(
            ablation,
            out=options.out,
            device=options.device,
            progress=progress,
            write_report=write_report,
            jobs=options.jobs or 1,
            reuse=not options.no_reuse,
        )
    if options.as_json:
        rows = [run.to_json() for run in results.runs]
        print_json({"folder": str(results.folder), "plan": results.plan.to_json(), "rows": rows})
    else:
        print_results(results)
    if missing := sorted((row for row in results.runs if row.status != "finished"), key=lambda row: row.status):
        first = missing[0]  # a failed one, if there is one
        state = "failed" if missing[-1].status == "failed" else "are not finished"
        raise error(
            "SD-X810",
            f"{len(missing)} of {len(results.runs)} runs {state}",
            where=str(results.folder),
            got=f"{first.arm} seed {first.seed}: {first.error or first.status}",
            fix="fix the error, then rerun the same command: finished runs are kept",
        )


def print_results(results: AblationResults) -> None:
    """Print the table, how to read it, the comparison with the published results, and the location of the report."""
    from sddit.reports.ablation.reproduction import against_published

    headings, rows, notes = results_table(results)
    print_table(headings, rows)
    for text in notes:
        echo(text)
    if reproduction := against_published(results):
        for text in (*reproduction.words, *(f"not compared: {what}: {why}" for what, why in reproduction.not_compared)):
            echo(text)
    echo(f"report: {results.folder / REPORT}")
    echo(f"sddit-run table {results.folder}   prints this table again; also with --latex, --markdown, --csv")


def results_table(results: AblationResults) -> tuple[list[str], list[list[str]], list[str]]:
    """Return headings, a row per arm, and notes on how to read them."""
    headings, rows = cells(results)
    compared = {metric: comparisons(results, metric) for metric in results.plan.metrics}
    notes = floors_sentence(results), interval_note(compared), without_metrics(results.plan)
    return headings, [list(map(printable, row)) for row in rows], [note for note in notes if note]


def without_metrics(plan: PlanRecord) -> str:
    """Return why an ablation compares no metric; empty if it compares some."""
    return "" if plan.metrics else sentence("nothing_compared", single=len(plan.arms) == 1, undecoded=plan.undecoded)


def show_ablation_plan(plan: AblationPlan, options: RunOptions) -> None:
    """Print the plan: a summary, run ids and every value in addition (--all), or JSON."""
    record = plan.record()
    arms = record.by_label
    states = [read_run(plan.folder, run, arms[run.arm], record.metrics) for run in record.runs or ()]
    if options.as_json:
        rows = [run.to_json() for run in states]
        print_json({**record.to_json(), "folder": str(plan.folder), "states": rows})
        return
    out = console()
    if options.show_all:
        print_details(plan, states, out)
        out.print()
    print_summary(plan, states, out)


def print_details(plan: AblationPlan, states: Sequence[RunOutcome], out: Console) -> None:
    """Print every value of the baseline with its origin, and the id and state of every run."""
    baseline = next(arm for arm in plan.arms if arm.label == plan.arms[0].baseline)
    out.print(f"Values of {printable(baseline.label)}, which the arms change as listed below", style="bold")
    print_all_values(baseline.recipe, out)
    if not states:
        return
    rows = {(row.arm, row.seed): row for row in states}
    runs = table("arm", *(f"seed {seed}" for seed in plan.settings.seeds))
    for arm in plan.arms:
        of_arm = [rows[arm.label, seed] for seed in plan.settings.seeds]
        runs.add_row(arm.label, *(f"{row.id} {STATES[row.status].format(step=row.steps)}".rstrip() for row in of_arm))
    out.print()
    out.print(runs)


def print_summary(plan: AblationPlan, states: Sequence[RunOutcome], out: Console) -> None:
    """Print the question, the budget, the total cost, and a line per arm."""
    out.print(f"{plan.base.name}-{plan.id}", style="bold")
    if plan.settings.question:
        out.print(printable(plan.settings.question))
    out.print(f"budget: {budget_text(plan)}")
    out.print(f"runs: {runs_text(plan, states)}")
    baselines = list(dict.fromkeys(arm.baseline for arm in plan.arms))
    if len(baselines) == 1:
        out.print(printable(f"baseline: {baselines[0]}"))
    own_baseline = ["compared with"] if len(baselines) > 1 else []
    arms = table("arm", *own_baseline, "runs", "steps", "images", "FLOPs per run", "parameters", "memory", "changes")
    for arm in plan.arms[:MAX_ARMS]:
        compared_with = ["" if arm.baseline == arm.label else arm.baseline] if own_baseline else []
        arms.add_row(*map(printable, (arm.label, *compared_with, *arm_cells(arm, plan, states))))
    if len(plan.arms) > MAX_ARMS:
        arms.add_row(f"and {len(plan.arms) - MAX_ARMS} more")
    out.print()
    out.print(arms)
    if text := without_metrics(plan.record()):
        out.print(f"\n{text}", soft_wrap=True)
    for text, style in notes_by_arm(plan):
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


def runs_text(plan: AblationPlan, states: Sequence[RunOutcome]) -> str:
    """Return how many runs there are, how many are finished, and what all of them cost."""
    product = f"{format_count(len(plan.arms), 'arm')} x {format_count(len(plan.settings.seeds), 'seed')}"
    if plan.budget.amount is None:
        return f"{product}, not planned yet"
    done = {row.id for row in states if row.status == "finished"}
    of_arm = {arm.label: arm.cost.training_flops for arm in plan.arms}
    known = [flops for run in plan.needed if (flops := of_arm[run.arm]) is not None]
    total = format_si(sum(known) if len(known) == len(plan.needed) else None, "FLOPs")
    shared = f", {len(plan.needed)} distinct" if len(plan.needed) < len(plan.runs) else ""
    finished = sum(run.id in done for run in plan.needed)
    time = ""
    if plan.budget.rule == "time":
        time = f", {format_duration(plan.budget.amount * len(plan.needed))} one after another"
    return f"{product} = {len(plan.runs)}{shared}; {finished} finished; training {total} in total{time}"


def arm_cells(arm: Arm, plan: AblationPlan, states: Sequence[RunOutcome]) -> list[str]:
    """Return runs, length, cost and changes of an arm. Its length is open until a budget of time has been measured."""
    own = [row.status for row in states if row.arm == arm.label]
    done, failed = own.count("finished"), own.count("failed")
    runs = f"{done} of {len(own)} finished" if done else f"{len(plan.settings.seeds)}"
    length = [f"{arm.cost.steps:,}", f"{arm.images:,}", format_si(arm.cost.training_flops)]
    return [
        f"{runs}, {failed} failed" if failed else runs,
        *(length if plan.budget.amount is not None else ["by time", "", ""]),
        format_si(arm.parameters),
        format_si(arm.cost.memory.total, "B"),
        format_changes(arm.changes),
    ]


def notes_by_arm(plan: AblationPlan) -> Iterator[tuple[str, str]]:
    """Yield each note on the plan once, with the arms that it concerns, and the style to print it in."""
    arms: dict[tuple[str, str], list[str]] = {}
    for arm in plan.arms:
        for note in plan_notes(arm.recipe, arm.cost):
            arms.setdefault(note, []).append(arm.label)
    for (text, style), labels in arms.items():
        yield f"{', '.join(labels)}: {text}", style
