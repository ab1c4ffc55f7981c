"""`sddit-run RECIPE`: train, sample, score, report; or with -n only say what that would be."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sddit.cli.common import Place, Verb, console, error_console, notice, print_json, state_of, work_console
from sddit.distributed import processes
from sddit.errors import SdditError, error, one_of, raise_all
from sddit.plugins.host import host
from sddit.progress import Progress, progress_on
from sddit.training.devices import surely_absent

if TYPE_CHECKING:
    from sddit.evaluation.scores import Scores
    from sddit.recipes.merge import Merged
    from sddit.recipes.recipe import Recipe
    from sddit.runs.pipeline import RunResult

EXAMPLES = """
sddit-run recipes/quickstart.toml
sddit-run recipes/quickstart.toml train.steps=200 seed=1
sddit-run -n recipes/quickstart.toml      what it would do, and cost
sddit-run runs/quickstart-4f2c91d07a55/recipe.resolved.json
"""


class RunCommand(Verb):
    """Its help is that of the whole command."""

    def get_help(self, ctx: click.Context) -> str:
        return ctx.parent.get_help() if ctx.parent else super().get_help(ctx)

    def format_usage(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        formatter.write_usage("sddit-run", "RECIPE [KEY=VALUE ...] [OPTIONS]")


@click.command("RECIPE", cls=RunCommand, examples=EXAMPLES)
@click.argument("source", metavar="RECIPE")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE ...]")
@click.option("-n", "--dry-run", is_flag=True, help="Print the plan and its cost; run nothing.")
@click.option("--out", type=Place(), default="runs", show_default=True, help="Folder of run folders.")
@click.option(
    "--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True, help="Where to compute."
)
@click.option("--fresh", is_flag=True, help="Set aside what the run folder holds, and begin anew.")
@click.option("--resume", type=Place(), metavar="RUN", help="Continue the run of this folder instead.")
@click.option(
    "--allow-change", "allow", multiple=True, metavar="KEY", help="With --resume: a key that may differ. Repeatable."
)
@click.option(
    "--nproc", metavar="N", type=click.IntRange(1), help="Processes on this machine, one for each GPU.  [default: 1]"
)
@click.option(
    "--jobs", metavar="N", type=click.IntRange(1), help="Of an ablation: runs at once, each a process.  [default: 1]"
)
@click.option("--only", metavar="ID", help="Of an ablation: one run of its plan, in this process.")
@click.option("--no-reuse", is_flag=True, help="Of an ablation: make every run again, in a folder of its own.")
@click.option("--json", "as_json", is_flag=True, help="Print the plan or the result as JSON; progress goes to stderr.")
@click.pass_context
def run(
    ctx: click.Context,
    source: str,
    overrides: tuple[str, ...],
    dry_run: bool,
    out: Path,
    device: str,
    fresh: bool,
    resume: Path | None,
    allow: tuple[str, ...],
    nproc: int | None,
    jobs: int | None,
    only: str | None,
    no_reuse: bool,
    as_json: bool,
) -> None:
    """Train, sample and score what a recipe describes."""
    from sddit.ablations.planning.arms import is_ablation
    from sddit.cli.ablation_run import ablate
    from sddit.recipes.checks import check_processes

    refuse_contradictions(dry_run=dry_run, fresh=fresh, resume=resume, allow=allow)
    merged = loaded(source, overrides)
    if is_ablation(merged):
        refuse_for_ablations(fresh=fresh, resume=resume, nproc=nproc)
        ablate(ctx, merged, dry_run, as_json=as_json, out=out, device=device, jobs=jobs, only=only, no_reuse=no_reuse)
        return
    refuse_for_recipes(jobs=jobs, only=only, no_reuse=no_reuse)
    recipe = resolved(merged, device)
    if dry_run:
        show_plan(warned(recipe, device), as_json=as_json)
        return
    if nproc is not None and nproc > 1:
        raise_all(check_processes(recipe, nproc))
        from sddit.cli.launch import launch

        ctx.exit(launch(arguments_of_a_rank(ctx), nproc))
    result = train(ctx, recipe, as_json=as_json, out=out, device=device, fresh=fresh, resume=resume, allow=allow)
    if processes.rank() == 0:
        show_result(result, as_json=as_json)


def arguments_of_a_rank(ctx: click.Context) -> list[str]:
    """The same command line for one of the processes that it is to become."""
    given = ctx.params
    options = [f"--out={given['out']}", f"--device={given['device']}"]
    options += [f"--allow-change={key}" for key in given["allow"]]
    options += [f"--resume={given['resume']}"] if given["resume"] else []
    flags = {"--fresh": given["fresh"], "--json": given["as_json"], "--debug": state_of(ctx).debug}
    return [given["source"], *given["overrides"], *options, *(flag for flag, on in flags.items() if on)]


def refuse_contradictions(*, dry_run: bool, fresh: bool, resume: Path | None, allow: tuple[str, ...]) -> None:
    """Flags that say opposite things, or nothing."""
    if dry_run and (fresh or resume):
        raise click.UsageError(f"-n runs nothing: leave out {'--fresh' if fresh else '--resume'}")
    if fresh and resume:
        raise click.UsageError("--fresh begins anew and --resume continues: give one of them")
    if allow and not resume:
        raise click.UsageError("--allow-change is for --resume: without it a changed recipe gets its own run folder")


def refuse_for_ablations(*, fresh: bool, resume: Path | None, nproc: int | None) -> None:
    """Flags of single runs."""
    if (nproc or processes.count()) > 1:
        raise click.UsageError("several processes are for one run: of an ablation, --jobs makes several runs at once")
    if fresh or resume:
        flag, instead = (
            ("--fresh", "--no-reuse makes every run again") if fresh else ("--resume", "it continues by itself")
        )
        raise click.UsageError(f"{flag} is for one run, and this recipe is an ablation: {instead}")


def refuse_for_recipes(*, jobs: int | None, only: str | None, no_reuse: bool) -> None:
    """Flags of ablations."""
    given = {"--jobs": jobs, "--only": only, "--no-reuse": no_reuse}
    if flags := [flag for flag, value in given.items() if value not in (None, False)]:
        raise click.UsageError(f"{flags[0]} is for ablations, and this recipe has no [ablation]")


def loaded(source: str, overrides: tuple[str, ...]) -> Merged:
    """The recipe as written, with its parents and the overrides."""
    from sddit.recipes.merge import load

    refuse_unknown_word(source)
    if not processes.told_already():
        host().announce = notice
    host().raise_for_builtins()
    return load(source, overrides)


def resolved(merged: Merged, device: str) -> Recipe:
    """The recipe, whole and checked."""
    from sddit.recipes.checks import check_device
    from sddit.recipes.resolve import resolve_merged

    recipe = resolve_merged(merged)
    raise_all(check_device(recipe, device))
    return recipe


def refuse_unknown_word(word: str) -> None:
    """A first word that is neither a recipe nor a verb: name the nearest of both."""
    from sddit.recipes import search as lookup

    if "/" in word or word.endswith((".toml", ".json")):
        return  # meant as a path: the search for the recipe says what is wrong
    try:
        lookup.find(word)
    except SdditError:
        verbs = click.get_current_context().find_root().command
        beside = [path.name for path in Path().glob("*.toml")]
        known = [*beside, *lookup.names(), *(verbs.commands if isinstance(verbs, click.Group) else ())]
        raise error(
            "SD-R170",
            f"{word!r} is neither a recipe nor a verb",
            where="command line",
            got=word,
            expect=one_of(word, known, most=20),
            fix="sddit-run --help   lists the verbs",
        ) from None


def warned(recipe: Recipe, device: str) -> Recipe:
    """The recipe, with a warning where this machine surely lacks the device: its plan may be meant for another one."""
    why = surely_absent(device)
    return replace(recipe, warnings=(*recipe.warnings, f"--device {device} is not here: {why}")) if why else recipe


def show_plan(recipe: Recipe, *, as_json: bool) -> None:
    """What would be run."""
    from sddit.cli.plan_view import print_plan
    from sddit.recipes.costs import plan

    planned = plan(recipe)
    if as_json:
        print_json({**planned.to_json(), **about(recipe)})
    else:
        print_plan(planned, recipe, console())


def about(recipe: Recipe) -> dict[str, Any]:
    """What the plan says of the recipe itself: every value, where each came from, and what was noticed."""
    return {
        "recipe": recipe.to_json(),
        "origins": dict(recipe.origins),
        "warnings": list(recipe.warnings),
        "idle": list(recipe.idle),
    }


def train(ctx: click.Context, recipe: Recipe, *, as_json: bool, **settings: Any) -> RunResult:
    """Run it, and show how it goes, for as long as anybody looks."""
    from sddit.runs.pipeline import run as start

    shown = progress_on(error_console() if as_json else work_console()) if processes.rank() == 0 else Progress()
    with shown as progress:
        state_of(ctx).progress = progress
        return start(recipe, progress=progress, **settings)


def show_result(result: RunResult, *, as_json: bool) -> None:
    """Where to look."""
    if as_json:
        print_json(
            {
                "folder": str(result.folder),
                "report": str(result.report),
                "already_finished": result.already_finished,
                "scores": {label: scores.to_json() for label, scores in result.scores.items()},
            }
        )
        return
    if result.already_finished:
        click.echo("finished before; --fresh begins anew")
    for scores in result.scores.values():
        click.echo(in_a_line(scores))
    click.echo(f"report: {result.report}")


def in_a_line(scores: Scores) -> str:
    """`FD-MobileNetV2 0.14, 2.4 times its floor 0.057 at n = 360; precision 0.68, recall 0.84; class accuracy 0.97`."""
    figures = [
        f"{scores.fd_name} {scores.fd:.3g}, {scores.times_floor:.1f} times its floor {scores.fd_floor:.3g} at n = {scores.n:,}",
        f"{scores.fd_all:.3g} at n = {scores.samples:,}",
        f"precision {scores.precision:.2f}, recall {scores.recall:.2f}",
    ]
    if scores.class_accuracy is not None:
        figures.append(f"class accuracy {scores.class_accuracy:.3f}")
    return "; ".join(figures)
