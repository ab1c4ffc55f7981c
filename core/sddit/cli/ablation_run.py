"""Run `sddit-run RECIPE` for a recipe with `[ablation]`: print the plan, execute all runs, or execute one of them."""

from __future__ import annotations

import click

from sddit.ablations.analysis.results import AblationResults
from sddit.ablations.analysis.table import cells, comparisons
from sddit.ablations.planning.arms import Ablation, expand
from sddit.ablations.planning.plan import AblationPlan
from sddit.ablations.runner import known_plan, one_of_plan, pick, run_ablation
from sddit.cli.ablation_plan_view import print_ablation_details, print_ablation_summary, run_states
from sddit.cli.common import console, error_console, print_json, state_of, table, work_console
from sddit.cli.run_options import RunOptions
from sddit.cli.run_progress import print_result, train
from sddit.errors import error, printable
from sddit.progress import progress_on
from sddit.recipes.merge import Merged
from sddit.reports.ablation.ablation_report import write_report
from sddit.reports.ablation.phrases import floors_sentence, interval_note
from sddit.reports.ablation.reproduction import Reproduction, against_published
from sddit.storage.run_folder import REPORT


def run_ablation_command(ctx: click.Context, merged: Merged, options: RunOptions) -> None:
    """Print the plan of an ablation, execute its runs, or execute one of them."""
    ablation = expand(merged, device=options.device)
    if options.dry_run:
        show_ablation_plan(known_plan(ablation, options.out), options)
    elif options.only is not None:
        run_one(ctx, known_plan(ablation, options.out), options.only, options)
    else:
        run_all(ctx, ablation, options)


def show_ablation_plan(plan: AblationPlan, options: RunOptions) -> None:
    """Print the plan: a summary, run ids and every value in addition (--all), or JSON."""
    if options.as_json:
        rows = [run.to_json() for run in run_states(plan)]
        print_json({**plan.record().to_json(), "folder": str(plan.folder), "states": rows})
        return
    out = console()
    if options.show_all:
        print_ablation_details(plan, out)
        out.print()
    print_ablation_summary(plan, out)


def run_all(ctx: click.Context, ablation: Ablation, options: RunOptions) -> None:
    """Execute the unfinished runs, then print the table. Raises SD-X810 if a run failed."""
    with progress_on(error_console() if options.as_json else work_console()) as progress:
        state_of(ctx).progress = progress
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
        print_json(
            {
                "folder": str(results.folder),
                "plan": results.plan.to_json(),
                "rows": [run.to_json() for run in results.runs],
            }
        )
    else:
        print_results(results)
    if failed := [row for row in results.runs if row.status == "failed"]:
        raise error(
            "SD-X810",
            f"{len(failed)} of {len(results.runs)} runs failed",
            where=str(results.folder),
            got=f"{failed[0].arm} seed {failed[0].seed}: {failed[0].error}",
            fix="fix the error, then rerun the same command: finished runs are kept",
        )


def run_one(ctx: click.Context, plan: AblationPlan, id: str, options: RunOptions) -> None:
    """Execute one run of the plan in this process, e.g. as a job of a cluster's queue."""
    run = pick(plan, id)
    with one_of_plan(plan, run, write_report):
        result = train(ctx, run.recipe, as_json=options.as_json, out=run.folder.parent, device=options.device)
    print_result(result, as_json=options.as_json)


def print_results(results: AblationResults) -> None:
    """Print the table, how to read it, and the location of the report."""
    headings, rows = cells(results)
    lines = table(*headings)
    for row in rows:
        lines.add_row(*map(printable, row))
    console().print(lines)
    compared = {metric: comparisons(results, metric) for metric in results.plan.metrics}
    for text in filter(None, (floors_sentence(results), interval_note(compared))):
        click.echo(text)
    if reproduction := against_published(results):
        print_reproduction(reproduction)
    click.echo(f"report: {results.folder / REPORT}")
    click.echo(f"sddit-run table {results.folder}   prints this table again; also with --latex, --markdown, --csv")


def print_reproduction(reproduction: Reproduction) -> None:
    """Print how the results compare with the published ones. The report compares each figure."""
    for text in (*reproduction.words, *(f"not compared: {what}: {why}" for what, why in reproduction.not_compared)):
        click.echo(printable(text))
