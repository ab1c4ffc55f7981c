"""`sddit-run verify`: the numerical suite on this machine, each number beside its bound."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click
from rich.text import Text

from sddit.cli.common import (
    JSON_AND_PROGRESS,
    PathOption,
    SdditCommand,
    console,
    device_option,
    error_console,
    json_option,
    notice,
    print_json,
    state_of,
    table,
)
from sddit.errors import error, printable
from sddit.plugins.host import host
from sddit.progress import progress_on

if TYPE_CHECKING:
    from sddit.verify import Row

EXAMPLES = """
sddit-run verify                       under a minute on two CPU cores
sddit-run verify --full                all recipes and kernels: some minutes
sddit-run verify --device cuda
sddit-run verify --fixtures numbers/   published implementations' numbers too
"""
STYLES = {"pass": "green", "FAIL": "bold red", "skipped": "yellow"}


@click.command("verify", cls=SdditCommand, examples=EXAMPLES)
@click.option(
    "--full",
    is_flag=True,
    help="Also look for leaks in recipes that are large or whose data are not here, with narrow networks and noise for "
    "images; and measure kernels that are compiled.",
)
@device_option
@click.option(
    "--fixtures",
    type=PathOption(exists=True, file_okay=False),
    metavar="FOLDER",
    help="Where numbers of published implementations lie.",
)
@json_option(JSON_AND_PROGRESS)
@click.pass_context
def verify(
    ctx: click.Context, full: bool, device: Literal["cpu", "cuda"], fixtures: Path | None, as_json: bool
) -> None:
    """Measure what this machine computes, and compare it with what it must."""
    from sddit.interfaces import CheckContext
    from sddit.training.environment import choose_device
    from sddit.verify import verify as measure
    from sddit.verify.published import folders

    choose_device(device)
    host().announce = notice
    host().raise_for_builtins()
    with progress_on(error_console()) as progress:
        state_of(ctx).progress = progress
        rows = list(measure(CheckContext(device=device, full=full, fixtures=folders(fixtures)), progress))
    if as_json:
        print_json([row.to_json() for row in rows])
    else:
        print_rows(rows)
    refuse_failures(rows)


def print_rows(rows: list[Row]) -> None:
    """A line a measurement, under the name of what it is of; then the sums."""
    out = console()
    shown = table("check", "measured", "bound", "")
    of = check = ""
    for row in rows:
        if row.of != of:
            shown.add_row(printable(row.of), style="bold cyan")
        if row.check != check or row.of != of:
            shown.add_row(f"  {printable(row.check)}", style="bold")
        of, check = row.of, row.check
        verdict = Text(row.verdict, style=STYLES[row.verdict])
        if row.measurement is None:
            shown.add_row(f"    {printable(row.reason)}", "", "", verdict)
        else:
            found = row.measurement
            bound = f"{found.relation} {found.tolerance:.3g}"
            shown.add_row(f"    {printable(found.what)}", f"{found.value:.3g}", bound, verdict)
    out.print(shown)
    counts = {verdict: sum(row.verdict == verdict for row in rows) for verdict in STYLES}
    out.print(f"\n{counts['pass']} pass, {counts['FAIL']} fail, {counts['skipped']} skipped", style="bold")


def refuse_failures(rows: list[Row]) -> None:
    """End with the exit status of wrong numbers if there is one; raises SD-N520."""
    failed = [row for row in rows if row.verdict == "FAIL"]
    if not failed:
        return
    first, found = failed[0], failed[0].measurement
    raise error(
        "SD-N520",
        f"{len(failed)} of {len(rows)} numerical checks failed",
        where=f"{first.of}: {first.check}",
        got=first.reason if found is None else f"{found.what}: {found.value:.3g}",
        expect="" if found is None else f"{found.relation} {found.tolerance:.3g}",
        fix="do not trust results of this machine before it is mended; report the table with  sddit-run verify --json",
    )
