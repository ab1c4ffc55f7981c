"""`sddit-run RECIPE` where the recipe has `[ablation]`: print the plan, run it, or run one run of it."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from sddit.ablations.analysis.results import Results, Row, readable
from sddit.ablations.analysis.table import cells, changes, comparisons, floors, legend
from sddit.ablations.planning.arms import Ablation, expand
from sddit.ablations.planning.plan import AblationPlan, PlannedArm
from sddit.ablations.runner import known_plan, one_of_plan, pick, run_ablation
from sddit.cli.commands.run import show_result, train
from sddit.cli.common import console, error_console, print_json, state_of, table, work_console
from sddit.errors import error, printable
from sddit.formatting import big
from sddit.progress import progress_on
from sddit.recipes.merge import Merged
from sddit.reports.ablation.reproduction import Reproduction, against_published
from sddit.storage.run_folder import REPORT

STATES = {"finished": "finished", "failed": "failed", "stopped": "step {step:,}", "waiting": ""}


def ablate(
    ctx: click.Context,
    merged: Merged,
    dry_run: bool,
    *,
    as_json: bool,
    out: Path,
    device: str,
    jobs: int | None,
    only: str | None,
    no_reuse: bool,
) -> None:
    """What the flags ask of an ablation."""
    refuse_contradictions(dry_run=dry_run, jobs=jobs, only=only, no_reuse=no_reuse)
    ablation = expand(merged, device=device)
    if dry_run:
        show_plan(known_plan(ablation, out), as_json=as_json)
    elif only is not None:
        run_one(ctx, known_plan(ablation, out), only, device=device, as_json=as_json)
    else:
        run_all(ctx, ablation, out=out, device=device, jobs=jobs or 1, reuse=not no_reuse, as_json=as_json)


def refuse_contradictions(*, dry_run: bool, jobs: int | None, only: str | None, no_reuse: bool) -> None:
    """Flags that say opposite things, or nothing."""
    given = {"--jobs": jobs, "--only": only, "--no-reuse": no_reuse}
    flags = [flag for flag, value in given.items() if value not in (None, False)]
    if dry_run and flags:
        raise click.UsageError(f"-n runs nothing: leave out {flags[0]}")
    if only is not None and len(flags) > 1:
        raise click.UsageError(f"--only is one run of the plan: leave out {flags[flags[0] == '--only']}")


# --------------------------------------------------------------------------------------------------------------------
# Run
# --------------------------------------------------------------------------------------------------------------------


def run_all(
    ctx: click.Context, ablation: Ablation, *, out: Path, device: str, jobs: int, reuse: bool, as_json: bool
) -> None:
    """Run what is not finished, then show the table. Raises SD-X810 if a run failed."""
    with progress_on(error_console() if as_json else work_console()) as progress:
        state_of(ctx).progress = progress
        results = run_ablation(ablation, out=out, device=device, progress=progress, jobs=jobs, reuse=reuse)
    if as_json:
        print_json({"folder": str(results.folder), "plan": results.plan, "rows": [asdict(row) for row in results.rows]})
    else:
        print_results(results)
    if failed := [row for row in results.rows if row.status == "failed"]:
        raise error(
            "SD-X810",
            f"{len(failed)} of {len(results.rows)} runs failed",
            where=str(results.folder),
            got=f"{failed[0].arm} seed {failed[0].seed}: {failed[0].error}",
            fix="mend it, then repeat the command: it makes only what is missing",
        )


def print_results(results: Results) -> None:
    """The table, and where to find more."""
    headings, rows = cells(results)
    shown = table(*headings)
    for row in rows:
        shown.add_row(*map(printable, row))
    console().print(shown)
    compared = {metric: comparisons(results, metric) for metric in results.plan["metrics"]}
    for words in filter(None, (floors(results), legend(compared))):
        click.echo(words)
    if reproduction := against_published(results):
        print_reproduction(reproduction)
    click.echo(f"report: {results.folder / REPORT}")
    click.echo(f"sddit-run table {results.folder}   shows this again; --latex, --markdown, --csv")


def print_reproduction(reproduction: Reproduction) -> None:
    """How this compares with what was published; the report has it figure by figure."""
    for text in (*reproduction.words, *(f"not compared: {what}: {why}" for what, why in reproduction.apart)):
        click.echo(printable(text))


def run_one(ctx: click.Context, plan: AblationPlan, id: str, *, device: str, as_json: bool) -> None:
    """One run of the plan, in this process: what a cluster's queue is given."""
    run = pick(plan, id)
    with one_of_plan(plan, run):
        result = train(ctx, run.recipe, as_json=as_json, out=run.folder.parent, device=device)
    show_result(result, as_json=as_json)


# --------------------------------------------------------------------------------------------------------------------
# Plan
# --------------------------------------------------------------------------------------------------------------------


def show_plan(plan: AblationPlan, *, as_json: bool) -> None:
    """What would be run."""
    if as_json:
        print_json({**plan.to_json(), "folder": str(plan.folder), "states": [asdict(row) for row in states(plan)]})
    else:
        print_plan(plan)


def states(plan: AblationPlan) -> list[Row]:
    """How far each run is by now."""
    known = plan.to_json()
    arms = {arm["label"]: arm for arm in known["arms"]}
    return [readable(plan.folder, run, arms[run["arm"]]) for run in known["runs"]]


def print_plan(plan: AblationPlan) -> None:
    """The arms with their cost, the runs with their ids, then what was noticed."""
    out = console()
    out.print(f"{plan.name}-{plan.id}", style="bold")
    if plan.settings.question:
        out.print(printable(plan.settings.question))
    out.print(f"budget: {budget(plan)}\n")
    arms = table("arm", "compared with", "steps", "images", "FLOPs", "parameters", "memory", "changes")
    for arm in plan.arms:
        arms.add_row(*map(printable, cost(arm, settled=plan.budget is not None)))
    out.print(arms)
    print_runs(plan)
    print_notes(plan)


def cost(arm: PlannedArm, *, settled: bool) -> list[str]:
    """What an arm takes, by formula; without a settled budget its length is open."""
    length = [f"{arm.cost.steps:,}", f"{arm.images:,}", big(arm.cost.training_flops)]
    return [
        arm.label,
        "" if arm.baseline == arm.label else arm.baseline,
        *(length if settled else ["by time", "", ""]),
        big(arm.parameters),
        big(arm.cost.memory.total, "B"),
        changes(arm.changes),
    ]


def budget(plan: AblationPlan) -> str:
    """`1,000 images for every arm`."""
    if plan.budget is None:
        return "equal time; the first command measures the seconds of a step, then the runs have ids"
    match plan.budget.rule:
        case "images":
            return f"{plan.budget.amount:,.0f} images for every arm"
        case "flops":
            return f"{big(plan.budget.amount)} FLOPs of training for every arm"
        case "time":
            return f"{plan.budget.amount:,.0f} seconds of training for every arm, by the pace that was measured first"


def print_runs(plan: AblationPlan) -> None:
    """The id of every run, arm by seed, and how far it is."""
    rows = {(row.arm, row.seed): row for row in states(plan)}
    if not rows:
        return
    runs = table("arm", *(f"seed {seed}" for seed in plan.settings.seeds))
    for arm in plan.arms:
        cells = [rows[arm.label, seed] for seed in plan.settings.seeds]
        runs.add_row(arm.label, *(f"{row.id} {STATES[row.status].format(step=row.steps)}".rstrip() for row in cells))
    console().print()
    console().print(runs)


def print_notes(plan: AblationPlan) -> None:
    """Warnings, idle keys and unstated costs of the arms, each once."""
    out = console()
    notes: dict[tuple[str, str], list[str]] = {}
    for arm in plan.arms:
        for warning in arm.recipe.warnings:
            notes.setdefault((f"warning: {warning}", "yellow"), []).append(arm.label)
        if idle := [key for key in arm.recipe.idle if not any(key in text for text in arm.recipe.warnings)]:
            notes.setdefault((f"idle: {', '.join(idle)}", "dim"), []).append(arm.label)
        if arm.cost.not_stated:
            text = f"cost not stated by {', '.join(arm.cost.not_stated)}"
            notes.setdefault((text, "yellow"), []).append(arm.label)
    for (text, style), labels in notes.items():
        out.print(printable(f"{', '.join(labels)}: {text}"), style=style, soft_wrap=True)
