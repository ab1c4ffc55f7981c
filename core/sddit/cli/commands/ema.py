"""`sddit-run ema`: make weights of a run that are averaged over more or fewer steps."""

from __future__ import annotations

import re
from pathlib import Path

import click

from sddit.cli.options import PathOption, SdditCommand, device_option, step_option
from sddit.cli.output import console, echo, error_console, notice, show_progress, table
from sddit.errors import error
from sddit.recipes.settings import MAX_SIGMA_REL

EXAMPLES = """
sddit-run ema RUN --sigma-rel 0.05
sddit-run ema RUN --sigma-rel 0.03,0.05,0.1 --score
sddit-run ema RUN --sigma-rel 0.02..0.25 --count 12 --score
sddit-run sample RUN --weights power-0.05
"""
EXPECTED = "a width such as 0.05, widths such as 0.03,0.05, or a range such as 0.02..0.25"


@click.command("ema", cls=SdditCommand, examples=EXAMPLES)
@click.argument("run", type=PathOption())
@click.option(
    "--sigma-rel",
    metavar="WIDTHS",
    required=True,
    help="Relative widths of the averages, such as 0.05, 0.03,0.05 or 0.02..0.25.",
)
@click.option(
    "--count", metavar="N", type=click.IntRange(2, 100), default=8, help="Widths of a range, at equal ratios."
)
@step_option
@click.option("--score", is_flag=True, help="Sample and score each, and show the scores by width in the report.")
@device_option
def ema(run: Path, sigma_rel: str, count: int, step: int | None, score: bool, device: str) -> None:
    """Average the weights of a trained run with power-function profiles of any width, from its snapshots."""
    from sddit.exchange.posthoc_ema import NOTABLE, write_averages
    from sddit.runs.average_scores import score_average

    written = []
    for average in write_averages(run, widths(sigma_rel, count), step):
        if abs(average.sum_of_factors - 1) > NOTABLE:
            notice(
                f"warning: {average.label}: the factors of the snapshots add up to {average.sum_of_factors:.4f}, and "
                "multiply all weights; more snapshots bring them nearer to 1"
            )
        written.append(average)
        if not score:
            echo(average.folder)
    if not score:
        notice(f"use them with --weights {written[0].label}")
        return
    rows = table("weights", "sigma_rel", "step", "Frechet distance", "held-out images")
    with show_progress(error_console()) as progress:
        for average in written:
            for name, one in score_average(run, average.label, device=device, progress=progress).items():
                figures = f"{one.fd:.4g}", f"{one.fd_floor:.4g}"
                rows.add_row(f"{average.label} ({name})", f"{average.sigma_rel:g}", f"{average.step:,}", *figures)
    console().print(rows)


def widths(text: str, count: int) -> list[float]:
    """Convert `0.05`, `0.03,0.05` or `0.02..0.25` to numbers."""
    ends = text.split("..")
    numbers = [number(part, text) for part in (ends if len(ends) == 2 else text.split(","))]
    if len(ends) != 2:
        return numbers
    low, high = numbers
    if low >= high:
        fix = f"--sigma-rel {high:g}..{low:g}" if high < low else f"--sigma-rel {low:g}"
        raise error("SD-T911", "the range is not ascending", where="--sigma-rel", got=text, expect=EXPECTED, fix=fix)
    return [round(low * (high / low) ** (index / (count - 1)), 4) for index in range(count)]


def number(text: str, given: str) -> float:
    """Convert one width. Raises SD-T921 for another text, SD-T911 for a width that no average has."""
    if not re.fullmatch(r"\s*[0-9]*\.?[0-9]+\s*", text):
        raise error("SD-T921", f"{text!r} is not valid here", where="--sigma-rel", got=given, expect=EXPECTED)
    width = round(float(text), 6)
    if not 0 < width < MAX_SIGMA_REL:
        expect = f"above 0, below {MAX_SIGMA_REL:.4f}, the width of the mean of all steps"
        raise error("SD-T911", "no average has this width", where="--sigma-rel", got=text.strip(), expect=expect)
    return width
