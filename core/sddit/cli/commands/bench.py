"""`sddit-run bench`: compare the training speed of recipes with each other and with a matrix product."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from sddit.cli.options import SdditCommand, device_option, json_and_progress_option
from sddit.cli.output import console, error_console, notice, print_json, show_progress, table
from sddit.formatting import format_si
from sddit.plugins.host import host

if TYPE_CHECKING:
    from sddit.training.benchmark import Bench

EXAMPLES = """
sddit-run bench                       the shipped recipes of one data set
sddit-run bench dit quickstart --rounds 9
"""


def refuse_nan(ctx: click.Context, param: click.Parameter, value: float) -> float:
    """Refuse NaN, which click's own range accepts."""
    if math.isnan(value):
        raise click.BadParameter(f"{value} is not a duration")
    return value


@click.command("bench", cls=SdditCommand, examples=EXAMPLES)
@click.argument("recipes", nargs=-1, metavar="[RECIPE ...]")
@click.option(
    "--rounds",
    metavar="N",
    type=click.IntRange(1, 1000),
    default=5,
    help="Rounds; every recipe runs once per round.",
)
@click.option(
    "--seconds",
    metavar="N",
    type=click.FloatRange(0, 3600, min_open=True),
    callback=refuse_nan,
    default=1.0,
    help="Length of one measurement.",
)
@device_option
@json_and_progress_option
def bench(recipes: tuple[str, ...], rounds: int, seconds: float, device: str, as_json: bool) -> None:
    """Measure the training speed of recipes, in turns."""
    from sddit.recipes.resolve import resolve
    from sddit.recipes.search import shipped
    from sddit.training.benchmark import bench as measure
    from sddit.training.environment import choose_device

    host().announce = notice
    chosen = [resolve(name) for name in recipes or sorted(shipped().glob("*.toml"))]
    if not recipes:  # those that train on the same images as the first one
        chosen = [recipe for recipe in chosen if recipe.facts.fingerprint == chosen[0].facts.fingerprint]
    with show_progress(error_console() if as_json else console()) as progress:
        result = measure(chosen, choose_device(device), rounds, seconds, progress)
    if as_json:
        print_json(asdict(result))
    else:
        print_bench(result)


def print_bench(result: Bench) -> None:
    """Print a line per recipe, and the peak speeds that they are compared with."""
    rows = table("recipe", "images/s", f"relative to {result.figures[0].name}", "FLOPs per image", "fraction of peak")
    for figure in result.figures:
        fraction = "" if figure.peak_share is None else f"{figure.peak_share:.0%}"
        speeds = f"{figure.images_per_second:,.0f}", f"{figure.relative:.2f}"
        rows.add_row(figure.name, *speeds, format_si(figure.flops_per_image), fraction)
    out = console()
    out.print(rows)
    for precision, peak in result.peaks.items():
        speed = f"{format_si(peak, 'FLOP/s')} in a {precision} matrix product"
        out.print(f"peak: {speed}, {result.threads} threads", style="dim")
    out.print(f"median of {result.rounds} rounds, recipes measured in turns", style="dim")
