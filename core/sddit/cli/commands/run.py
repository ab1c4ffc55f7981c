"""`sddit-run RECIPE`: train, sample, score and report; with -n print the plan only."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sddit.cli.common import PathOption, SdditCommand, console, device_option, json_option, notice, print_json, state_of
from sddit.cli.run_options import RunOptions
from sddit.cli.run_progress import print_result, train
from sddit.distributed import processes
from sddit.errors import SdditError, error, one_of, raise_all
from sddit.plugins.host import host
from sddit.training.devices import unavailable_reason

if TYPE_CHECKING:
    from sddit.recipes.merge import Merged
    from sddit.recipes.recipe import Recipe

EXAMPLES = """
sddit-run quickstart                       a shipped recipe by its name
sddit-run recipes/quickstart.toml train.steps=200 seed=1
sddit-run -n quickstart                    cost, memory, views, changes
sddit-run recipes/ablations/mask_ratio.toml --jobs 2
sddit-run runs/quickstart-4f2c91d07a55/recipe.resolved.json
"""


class RunCommand(SdditCommand):
    """The command of a recipe. Its help is the help of `sddit-run` itself."""

    def get_help(self, ctx: click.Context) -> str:
        return ctx.parent.get_help() if ctx.parent else super().get_help(ctx)

    def format_usage(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        formatter.write_usage("sddit-run", "RECIPE [KEY=VALUE ...] [OPTIONS]")


@click.command("RECIPE", cls=RunCommand, examples=EXAMPLES)
@click.argument("source", metavar="RECIPE")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE ...]")
@click.option("-n", "--dry-run", is_flag=True, help="Print the plan and its cost on one screen, then exit.")
@click.option("--all", "show_all", is_flag=True, help="With -n: list every value and where it was set.")
@click.option(
    "--out", type=PathOption(), metavar="DIR", default="runs", show_default=True, help="Parent folder of run folders."
)
@device_option
@click.option("--fresh", is_flag=True, help="Move an existing run folder aside and start over.")
@click.option("--resume", type=PathOption(), metavar="RUN", help="Resume the run in this folder with this recipe.")
@click.option(
    "--allow-change", "allow", multiple=True, metavar="KEY", help="With --resume: a key that may differ. Repeatable."
)
@click.option(
    "--nproc", metavar="N", type=click.IntRange(1), help="Processes on this machine, one per GPU.  [default: 1]"
)
@click.option(
    "--jobs", metavar="N", type=click.IntRange(1), help="Ablations only: runs to execute in parallel.  [default: 1]"
)
@click.option("--only", metavar="ID", help="Ablations only: execute this run, in this process.")
@click.option("--no-reuse", is_flag=True, help="Ablations only: train every run again, in a new folder.")
@json_option("Print the plan or the result as JSON; progress goes to stderr.")
@click.pass_context
def run(ctx: click.Context, /, source: str, overrides: tuple[str, ...], **flags: Any) -> None:
    """Train, sample and score a recipe."""
    from sddit.ablations.planning.arms import is_ablation
    from sddit.cli.ablation_run import run_ablation_command

    options = RunOptions(**flags)
    options.refuse_contradictions()
    merged = load_recipe(source, overrides)
    if is_ablation(merged):
        options.refuse_for_ablation()
        run_ablation_command(ctx, merged, options)
    else:
        options.refuse_for_single_run()
        run_recipe(ctx, merged, options)


def run_recipe(ctx: click.Context, merged: Merged, options: RunOptions) -> None:
    """Print the plan of a recipe, start its processes, or train it in this one."""
    from sddit.recipes.checks import check_processes

    recipe = resolve_for_device(merged, options.device)
    if options.dry_run:
        show_recipe_plan(merged, with_device_warning(recipe, options.device), options)
        return
    if options.nproc is not None and options.nproc > 1:
        raise_all(check_processes(recipe, options.nproc))
        from sddit.cli.launch import launch

        ctx.exit(launch(rank_arguments(ctx), options.nproc))
    result = train(
        ctx,
        recipe,
        as_json=options.as_json,
        out=options.out,
        device=options.device,
        fresh=options.fresh,
        resume=options.resume,
        allow=options.allow,
    )
    if processes.rank() == 0:
        print_result(result, as_json=options.as_json)


def rank_arguments(ctx: click.Context) -> list[str]:
    """Return the command line of one rank: this command line without --nproc."""
    values = ctx.params
    options = [f"--out={values['out']}", f"--device={values['device']}"]
    options += [f"--allow-change={key}" for key in values["allow"]]
    options += [f"--resume={values['resume']}"] if values["resume"] else []
    flags = {"--fresh": values["fresh"], "--json": values["as_json"], "--debug": state_of(ctx).debug}
    return [values["source"], *values["overrides"], *options, *(flag for flag, is_set in flags.items() if is_set)]


def load_recipe(source: str, overrides: tuple[str, ...]) -> Merged:
    """Read the recipe with its parents and the overrides, unchecked."""
    from sddit.recipes.merge import load

    refuse_unknown_word(source)
    if not processes.is_reported_elsewhere():
        host().announce = notice
    host().raise_for_builtins()
    return load(source, overrides)


def resolve_for_device(merged: Merged, device: str) -> Recipe:
    """Resolve the recipe and check that it can train on `device`."""
    from sddit.recipes.checks import check_device
    from sddit.recipes.resolve import resolve_merged

    recipe = resolve_merged(merged)
    raise_all(check_device(recipe, device))
    return recipe


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
            expect=one_of(word, known, max_names=20),
            fix="run  sddit-run --help  for the list of commands",
        ) from None


def with_device_warning(recipe: Recipe, device: str) -> Recipe:
    """Add a warning if this machine lacks the device: the plan may be for another machine."""
    reason = unavailable_reason(device)
    if not reason:
        return recipe
    return replace(recipe, warnings=(*recipe.warnings, f"--device {device} is not available on this machine: {reason}"))


def show_recipe_plan(merged: Merged, recipe: Recipe, options: RunOptions) -> None:
    """Print the plan of one run: a summary, every value (--all), or JSON."""
    from sddit.cli.base_changes import changes_from_base
    from sddit.cli.plan_view import print_all_values, print_notes, print_summary
    from sddit.recipes.costs import plan

    planned = plan(recipe)
    if options.as_json:
        print_json({**planned.to_json(), **recipe_record(recipe)})
        return
    out = console()
    if options.show_all:
        print_all_values(recipe, out)
        out.print()
    folder = options.out / f"{recipe.name}-{planned.run_id}"
    print_summary(planned, recipe, changes_from_base(merged, recipe), folder, out)
    print_notes(planned, recipe, out)


def recipe_record(recipe: Recipe) -> dict[str, Any]:
    """Return the recipe's part of the JSON plan: values, origins, warnings and idle keys."""
    return {
        "recipe": recipe.to_json(),
        "origins": dict(recipe.origins),
        "warnings": list(recipe.warnings),
        "idle": list(recipe.idle),
    }
