"""`sddit-run evaluate`: the scores of a trained run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from sddit.cli.frame import Verb, console, error_console, notice, print_json, state_of, table
from sddit.plugins import host
from sddit.progress import progress_on

EXAMPLES = """
sddit-run evaluate runs/quickstart-4f2c91d07a55
sddit-run evaluate RUN --json
"""
ROWS = {
    "fd": "Frechet distance",
    "fd_all": "Frechet distance, all {samples} samples",
    "kid": "kernel distance",
    "precision": "precision",
    "recall": "recall",
    "class_accuracy": "class accuracy",
}


@click.command("evaluate", cls=Verb, examples=EXAMPLES)
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True, help="Where to compute."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON; progress goes to stderr.")
@click.pass_context
def evaluate(ctx: click.Context, run: Path, device: str, as_json: bool) -> None:
    """Sample a run and score the pictures."""
    host().announce = notice
    if not is_scored(run):
        notice("no scores: the recipe's evaluate.features names no extractor")
        if as_json:
            print_json({})
        return
    from sddit.run import evaluate_run  # torch, which the answer above does not need

    with progress_on(error_console() if as_json else console()) as progress:
        state_of(ctx).progress = progress
        found = evaluate_run(run, device=device, progress=progress)
    scores = {label: one.to_json() for label, one in found.items()}
    if as_json:
        print_json(scores)
    else:
        print_scores(scores)


def is_scored(run: Path) -> bool:
    """Whether the run's recipe names an extractor; what is no run folder is refused where it is loaded."""
    from sddit.recipes.resolve import resolve

    recipe = run / "recipe.resolved.json"
    return not recipe.is_file() or bool(resolve(recipe).features)


def print_scores(scores: Mapping[str, Mapping[str, Any]]) -> None:
    """One block an extractor: each figure beside what held-out images get."""
    out = console()
    for label, one in scores.items():
        out.print(f"{one['title']} ({label}), {one['n']} images against {one['training']}", style="bold")
        block = table("", "samples", "held-out images")
        for key, title in ROWS.items():
            if one.get(key) is not None:
                block.add_row(title.format_map(one), figure(one[key]), figure(one.get(f"{key}_floor")))
        out.print(block)


def figure(value: float | None) -> str:
    """Four digits, or nothing."""
    return "" if value is None else f"{value:.4g}"
