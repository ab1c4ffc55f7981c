"""`sddit-run RECIPE`: train, sample, score and report; with -n print the plan only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sddit.cli.options import PathOption, RunOptions, SdditCommand, device_option, named_devices
from sddit.cli.output import (
    console,
    current_state,
    echo,
    error_console,
    notice,
    print_json,
    show_progress,
    work_console,
)
from sddit.cli.streams import release_stdout
from sddit.distributed import processes
from sddit.errors import SdditError, error, printable, raise_all
from sddit.plugins.host import host
from sddit.training.devices import unavailable_reason

if TYPE_CHECKING:
    from sddit.ablations.planning.plan import AblationPlan
    from sddit.evaluation.scores import Scores
    from sddit.recipes.merge import Merged
    from sddit.recipes.recipe import Recipe
    from sddit.runs.pipeline import RunResult

FULL_HASH = "dataset.full_hash=true"
EXAMPLES = """
sddit-run quickstart                       a shipped recipe by its name
sddit-run recipes/quickstart.toml train.steps=200 seed=1
sddit-run -n quickstart --on 8xH100        cost, memory, views, changes
sddit-run recipes/ablations/mask_ratio.toml --jobs 2
"""


class RunCommand(SdditCommand):
    """The command of a recipe. Its help is the help of `sddit-run` itself."""

    unknown_option_hint = "Settings of a recipe are written as KEY=VALUE, such as train.steps=100."

    def get_help(self, ctx: click.Context) -> str:
        return ctx.find_root().get_help()


@click.command("RECIPE", cls=RunCommand, examples=EXAMPLES)
@click.argument("source", metavar="RECIPE")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE ...]")
@click.option("-n", "--dry-run", is_flag=True, help="Print the plan and its cost on one screen, then exit.")
@click.option("--all", "show_all", is_flag=True, help="With -n: list every value and where it was set.")
@click.option("--out", type=PathOption(), metavar="DIR", default="runs", help="Parent folder of run folders.")
@device_option
@click.option("--fresh", is_flag=True, help="Move an existing run folder aside and start over.")
@click.option("--resume", type=PathOption(), metavar="RUN", help="Resume the run in this folder with this recipe.")
@click.option(
    "--allow-change", "allow", multiple=True, metavar="KEY", help="With --resume: a key that may differ. Repeatable."
)
@click.option("--nproc", metavar="N", type=click.IntRange(1), help="Processes, one per GPU.  [default: 1]")
@click.option(
    "--on", metavar="DEVICES", callback=named_devices, help="With -n: estimate hours on devices by name: 8xH100."
)
@click.option("--jobs", metavar="N", type=click.IntRange(1), help="Ablations only: runs in parallel.  [default: 1]")
@click.option("--only", metavar="ID", help="Ablations only: execute this run, in this process.")
@click.option("--no-reuse", is_flag=True, help="Ablations only: train every run again, in a new folder.")
@click.option("--full-hash", is_flag=True, help="Look for changed data in all bytes of the files.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON; progress goes to stderr.")
def run(source: str, overrides: tuple[str, ...], full_hash: bool, **flags: Any) -> None:
    """Train, sample and score a recipe."""
    from sddit.ablations.planning.arms import expand, is_ablation
    from sddit.recipes.merge import load

    options = RunOptions(**flags)
    options.refuse_contradictions()
    current_state().parallel = not options.dry_run
    refuse_unknown_word(source)
    if not processes.is_reported_elsewhere():
        host().announce = notice
    host().raise_for_builtins()
    merged = load(source, (*overrides, *((FULL_HASH,) if full_hash else ())))
    merged.planned = options.dry_run
    if full_hash:
        refuse_full_hash(merged)
    if not options.dry_run:
        encode_images(merged, options)
    if not is_ablation(merged):
        options.refuse_for_single_run()
        run_recipe(merged, options)
        return
    options.refuse_for_ablation()
    from sddit.ablations.runner import known_plan
    from sddit.cli.ablation_run import run_all, show_ablation_plan

    ablation = expand(merged, device=options.device)
    if options.dry_run:
        show_ablation_plan(known_plan(ablation, options.out), options)
    elif options.only is not None:
        run_one(known_plan(ablation, options.out), options.only, options)
    else:
        run_all(ablation, options)


def encode_images(merged: Merged, options: RunOptions) -> None:
    """Encode the images of a recipe that trains on their latents, before its first run."""
    if not isinstance(codec := merged.tables.get("codec"), dict) or not codec.get("encode"):
        return
    from sddit.encoding.encode import encode_data_of

    with show_progress(error_console() if options.as_json else work_console()) as progress:
        encode_data_of(merged, device=options.device, progress=progress)


def refuse_full_hash(merged: Merged) -> None:
    """Refuse --full-hash for a data set without that key. That of a plugin is checked when the recipe is resolved."""
    table = merged.tables.get("dataset")
    name = table.get("name") if isinstance(table, dict) else None
    known = {name: c for c in host().registries.datasets for name in (c.name, c.qualified)}
    if name in known and "full_hash" not in known[name].params.model_fields:
        having = sorted(c.name for c in host().registries.datasets if "full_hash" in c.params.model_fields)
        raise click.UsageError(
            f"--full-hash is for data sets with the key full_hash ({', '.join(having) or 'none is loaded'}), "
            f"and this recipe has dataset.name = {name!r}"
        )


def run_recipe(merged: Merged, options: RunOptions) -> None:
    """Print the plan of a recipe, start its processes, or train it in this one."""
    from sddit.recipes.checks import check_device, check_processes
    from sddit.recipes.resolve import resolve_merged

    recipe = replace(resolve_merged(merged), processes=options.processes)
    raise_all(check_device(recipe, options.device))
    if recipe.processes > 1:
        raise_all(check_processes(recipe, recipe.processes))
    if options.dry_run:
        if reason := unavailable_reason(options.device):  # the plan may be for another machine
            warning = f"--device {options.device} is not available on this machine: {reason}"
            recipe = replace(recipe, warnings=(*recipe.warnings, warning))
        show_recipe_plan(merged, recipe, options)
        return
    if options.nproc is not None and options.nproc > 1:
        from sddit.cli.launch import launch

        release_stdout()  # the ranks write to it, each as this process would
        context = click.get_current_context()
        context.exit(launch(rank_arguments(context.params), options.nproc))
    processes.placement()
    result = train(recipe, options, out=options.out, fresh=options.fresh, resume=options.resume, allow=options.allow)
    if processes.rank() == 0:
        print_result(result, as_json=options.as_json)


def run_one(plan: AblationPlan, id: str, options: RunOptions) -> None:
    """Execute one run of an ablation in this process, e.g. as a job of a cluster's queue."""
    from sddit.ablations.runner import one_of_plan, pick
    from sddit.reports.ablation.ablation_report import write_report

    planned = pick(plan, id)
    with one_of_plan(plan, planned, write_report):
        result = train(planned.recipe, options, out=planned.folder.parent)
    print_result(result, as_json=options.as_json)


def train(recipe: Recipe, options: RunOptions, **settings: Any) -> RunResult:
    """Train, sample, score and report. `settings` go to `sddit.runs.pipeline.run`."""
    from sddit.runs.pipeline import run

    with show_progress(error_console() if options.as_json else work_console()) as progress:
        return run(recipe, progress=progress, device=options.device, **settings)


def print_result(result: RunResult, *, as_json: bool) -> None:
    if as_json:
        print_json(
            {
                "folder": str(result.folder),
                "report": str(result.report),
                "already_finished": result.already_finished,
                **({} if result.scores else {"no_scores": result.no_scores}),
                "scores": {label: scores.to_json() for label, scores in result.scores.items()},
            }
        )
        return
    if result.already_finished:
        echo("already finished; use --fresh to start over")
    for scores in result.scores.values():
        echo(score_line(scores))
    if not result.scores and result.no_scores:
        echo(f"no scores: {result.no_scores}")
    echo(f"report: {result.report}")


def score_line(scores: Scores) -> str:
    """Return `FD-MobileNetV2 0.14, 2.4 times its floor 0.057 at n = 360; precision 0.68, recall 0.84`."""
    parts = [
        f"{scores.fd_name} {scores.fd:.3g}, {scores.times_floor:.1f} times its floor {scores.fd_floor:.3g} "
        f"at n = {scores.n:,}"
    ]
    if scores.samples != scores.n:
        parts.append(f"{scores.fd_all:.3g} at n = {scores.samples:,}")
    parts.append(f"precision {scores.precision:.2f}, recall {scores.recall:.2f}")
    if scores.class_accuracy is not None:
        parts.append(f"class accuracy {scores.class_accuracy:.3f}")
    return "; ".join(parts)


def rank_arguments(values: Mapping[str, Any]) -> list[str]:
    """Return the command line of one rank: this command line without --nproc."""
    options = [f"--out={values['out']}", f"--device={values['device']}"]
    options += [f"--allow-change={key}" for key in values["allow"]]
    options += [f"--resume={values['resume']}"] if values["resume"] else []
    flags = {"--full-hash": values["full_hash"], "--fresh": values["fresh"], "--json": values["as_json"]}
    flags["--debug"] = current_state().debug
    return [values["source"], *values["overrides"], *options, *(flag for flag, is_set in flags.items() if is_set)]


def refuse_unknown_word(word: str) -> None:
    """Raise SD-R170 for a first word that is neither a recipe nor a command, with the nearest of both."""
    from sddit.recipes import search as lookup

    if "/" in word or word.endswith((".toml", ".json")):
        return  # a path: the search for the recipe reports what is wrong with it
    try:
        lookup.find(word)
    except SdditError:
        group = click.get_current_context().find_root().command
        nearby = [path.name for path in Path().glob("*.toml")]
        known = [*nearby, *lookup.names(), *(group.commands if isinstance(group, click.Group) else ())]
        raise error(
            "SD-R170",
            f"{word!r} is neither a recipe nor a command",
            where="command line",
            got=word,
            expect=lookup.one_of_recipes(word, known),
            fix="run  sddit-run --help  for the list of commands",
        ) from None


def show_recipe_plan(merged: Merged, recipe: Recipe, options: RunOptions) -> None:
    """Print the plan of one run: a summary, every value (--all), or JSON."""
    from sddit.cli.plan_view import plan_notes, print_all_values, print_summary, stated_times
    from sddit.recipes.costs import plan

    planned = plan(recipe)
    if options.as_json:
        print_json(
            {
                **planned.to_json(),
                "recipe": recipe.to_json(),
                "origins": dict(recipe.origins),
                "declared": recipe.declared,
                **({"on": stated_times(planned, recipe, options.on)} if options.on else {}),
                "warnings": list(recipe.warnings),
                "idle": list(recipe.idle),
            }
        )
        return
    out = console()
    if options.show_all:
        print_all_values(recipe, out)
        out.print()
    print_summary(planned, merged, recipe, options, out)
    for text, style in plan_notes(recipe, planned):
        out.print(printable(text), style=style, soft_wrap=True)
