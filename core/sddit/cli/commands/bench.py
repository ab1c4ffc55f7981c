"""`sddit-run bench`: training speed of recipes, side by side, and beside the machine's own matrix product."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import click

from sddit.cli.common import (
    JSON_AND_PROGRESS,
    SdditCommand,
    console,
    device_option,
    error_console,
    json_option,
    notice,
    print_json,
    table,
)
from sddit.formatting import big
from sddit.plugins.host import host
from sddit.progress import progress_on

if TYPE_CHECKING:
    from sddit.recipes.recipe import Recipe
    from sddit.training.benchmark import Bench

EXAMPLES = """
sddit-run bench                          the shipped recipes on one data set
sddit-run bench dit quickstart --rounds 9
"""


class Duration(click.FloatRange):
    """Seconds, up to an hour. A range of click's own takes NaN, which no comparison refuses."""

    def __init__(self) -> None:
        super().__init__(0, 3600, min_open=True)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        seconds: float = super().convert(value, param, ctx)
        if math.isnan(seconds):
            self.fail(f"{value} is no length of time", param, ctx)
        return seconds


@click.command("bench", cls=SdditCommand, examples=EXAMPLES)
@click.argument("recipes", nargs=-1, metavar="[RECIPE ...]")
@click.option(
    "--rounds", metavar="N", type=click.IntRange(1, 1000), default=5, show_default=True, help="Turns of each recipe."
)
@click.option(
    "--seconds",
    metavar="N",
    type=Duration(),
    default=1.0,
    show_default=True,
    help="Length of a turn.",
)
@device_option
@json_option(JSON_AND_PROGRESS)
def bench(recipes: tuple[str, ...], rounds: int, seconds: float, device: str, as_json: bool) -> None:
    """Measure training speed, in turns, against a matrix product."""
    from sddit.recipes.resolve import resolve
    from sddit.training.benchmark import bench as measure
    from sddit.training.environment import choose_device

    host().announce = notice
    chosen = [resolve(name) for name in recipes] if recipes else shipped()
    with progress_on(error_console() if as_json else console()) as progress:
        found = measure(chosen, choose_device(device), rounds, seconds, progress)
    if as_json:
        print_json(as_record(found))
    else:
        print_bench(found)


def shipped() -> list[Recipe]:
    """The shipped recipes that train on the same images as the first of them."""
    from sddit.recipes import search as lookup
    from sddit.recipes.resolve import resolve

    every = [resolve(path) for path in sorted(lookup.shipped().glob("*.toml"))]
    return [recipe for recipe in every if recipe.facts.fingerprint == every[0].facts.fingerprint]


def as_record(found: Bench) -> dict[str, object]:
    """The benchmark as JSON."""
    from dataclasses import asdict

    return asdict(found)


def print_bench(found: Bench) -> None:
    """A line a recipe, and under it what they are measured against."""
    out = console()
    shown = table("recipe", "images/s", f"of {found.figures[0].name}", "FLOPs an image", "of peak")
    for figure in found.figures:
        share = "" if figure.peak_share is None else f"{figure.peak_share:.0%}"
        shown.add_row(
            figure.name,
            f"{figure.images_per_second:,.0f}",
            f"{figure.relative:.2f}",
            big(figure.flops_per_image),
            share,
        )
    out.print(shown)
    for precision, peak in found.peaks.items():
        out.print(f"peak: {big(peak, 'FLOP/s')} of a {precision} matrix product, {found.threads} threads", style="dim")
    out.print(f"median of {found.rounds} rounds, in which the recipes took turns", style="dim")
