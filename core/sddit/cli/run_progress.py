"""Train one resolved recipe with a progress display, and print its result."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from sddit.cli.common import error_console, print_json, state_of, work_console
from sddit.distributed import processes
from sddit.progress import Progress, progress_on

if TYPE_CHECKING:
    from sddit.evaluation.scores import Scores
    from sddit.recipes.recipe import Recipe
    from sddit.runs.pipeline import RunResult


def train(ctx: click.Context, recipe: Recipe, *, as_json: bool, **settings: Any) -> RunResult:
    """Train, sample, score and report; rank 0 shows the progress. `settings` go to `sddit.runs.pipeline.run`."""
    from sddit.runs.pipeline import run

    display = progress_on(error_console() if as_json else work_console()) if processes.rank() == 0 else Progress()
    with display as progress:
        state_of(ctx).progress = progress
        return run(recipe, progress=progress, **settings)


def print_result(result: RunResult, *, as_json: bool) -> None:
    """Print the scores and the location of the report."""
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
        click.echo("already finished; use --fresh to start over")
    for scores in result.scores.values():
        click.echo(score_line(scores))
    click.echo(f"report: {result.report}")


def score_line(scores: Scores) -> str:
    """Return `FD-MobileNetV2 0.14, 2.4 times its floor 0.057 at n = 360; precision 0.68, recall 0.84`."""
    parts = [
        f"{scores.fd_name} {scores.fd:.3g}, {scores.times_floor:.1f} times its floor {scores.fd_floor:.3g} "
        f"at n = {scores.n:,}",
        f"{scores.fd_all:.3g} at n = {scores.samples:,}",
        f"precision {scores.precision:.2f}, recall {scores.recall:.2f}",
    ]
    if scores.class_accuracy is not None:
        parts.append(f"class accuracy {scores.class_accuracy:.3f}")
    return "; ".join(parts)
