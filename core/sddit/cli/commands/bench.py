"""`sddit-run bench`: compare the training speed of recipes with each other and with a matrix product."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from sddit.cli.options import SdditCommand, device_option, json_option
from sddit.cli.output import console, error_console, notice, print_json, show_progress, table
from sddit.formatting import format_si
from sddit.plugins.host import host

if TYPE_CHECKING:
    from sddit.recipes.recipe import Recipe
    from sddit.training.benchmark import Bench

EXAMPLES = """
sddit-run bench                       the shipped recipes of one data set
sddit-run bench dit quickstart --rounds 9
"""


class Seconds(click.FloatRange):
    """Seconds, up to an hour. Also refuses NaN, which click's own range accepts."""

    def __init__(self) -> None:
        super().__init__(0, 3600, min_open=True)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        seconds: float = super().convert(value, param, ctx)
        if math.isnan(seconds):
            self.fail(f"{value} is not a duration", param, ctx)
        return seconds


@click.command("bench", cls=SdditCommand, examples=EXAMPLES)
@click.argument("recipes", nargs=-1, metavar="[RECIPE ...]")
@click.option(
    "--rounds",
    metavar="N",
    type=click.IntRange(1, 1000),
    default=5,
    help="Rounds; every recipe runs once per round.",
)
@click.option("--seconds", metavar="N", type=Seconds(), default=1.0, help="Length of one measurement.")
@device_option
@json_option()
def bench(recipes: tuple[str, ...], rounds: int, seconds: float, device: str, as_json: bool) -> None:
    """Measure the training speed of recipes, in turns."""
    from sddit.recipes.resolve import resolve
    from sddit.training.benchmark import bench as measure
    from sddit.training.environment import choose_device

    host().announce = notice
    chosen = [resolve(name) for name in recipes] if recipes else shipped_recipes()
    with show_progress(error_console() if as_json else console()) as progress:
        result = measure(chosen, choose_device(device), rounds, seconds, progress)
    if as_json:
        print_json(asdict(result))
    else:
        print_bench(result)


def shipped_recipes() -> list[Recipe]:
    """Return the shipped recipes that train on the same images as the first one."""
    from sddit.recipes.resolve import resolve
    from sddit.recipes.search import shipped

    recipes = [resolve(path) for path in sorted(shipped().glob("*.toml"))]
    return [recipe for recipe in recipes if recipe.facts.fingerprint == recipes[0].facts.fingerprint]


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
