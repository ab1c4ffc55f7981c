"""`sddit-run verify`: run the numerical checks on this machine, each value next to its bound."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click
from rich.text import Text

from sddit.cli.options import PathOption, SdditCommand, device_option, json_and_progress_option
from sddit.cli.output import console, error_console, notice, print_json, show_progress, table
from sddit.errors import error, printable
from sddit.plugins.host import host

if TYPE_CHECKING:
    from sddit.verify import Row

EXAMPLES = """
sddit-run verify                       under a minute on two CPU cores
sddit-run verify --full                all recipes and kernels: minutes
sddit-run verify --device cuda
sddit-run verify --fixtures numbers/   also published numbers
"""
STYLES = {"pass": "green", "FAIL": "bold red", "skipped": "yellow"}


@click.command("verify", cls=SdditCommand, examples=EXAMPLES)
@click.option(
    "--full",
    is_flag=True,
    help="Also check large recipes and recipes without local data for leaks, with narrow networks on noise, "
    "and measure compiled kernels.",
)
@device_option
@click.option(
    "--fixtures",
    type=PathOption(exists=True, file_okay=False),
    metavar="DIR",
    help="Folder with stored numbers of published implementations.",
)
@json_and_progress_option
def verify(full: bool, device: Literal["cpu", "cuda"], fixtures: Path | None, as_json: bool) -> None:
    """Check the numerics of this machine against known values."""
    from sddit.interfaces import CheckContext
    from sddit.training.environment import choose_device
    from sddit.verify import verify as measure
    from sddit.verify.published import folders

    choose_device(device)
    host().announce = notice
    host().raise_for_builtins()
    with show_progress(error_console()) as progress:
        rows = list(measure(CheckContext(device=device, full=full, fixtures=folders(fixtures)), progress))
    if as_json:
        print_json([row.to_json() for row in rows])
    else:
        print_rows(rows)
    if failed := [row for row in rows if row.verdict == "FAIL"]:
        what, value, bound = cells(failed[0])
        raise error(
            "SD-N520",
            f"{len(failed)} of {len(rows)} numerical checks failed",
            where=f"{failed[0].of}: {failed[0].check}",
            got=f"{what}: {value}" if value else what,
            expect=bound,
            fix="do not trust results of this machine until this is fixed; report the output of  "
            "sddit-run verify --json",
        )


def print_rows(rows: list[Row]) -> None:
    """Print a line per measurement, grouped by subject and check, then the totals."""
    lines = table("check", "measured", "bound", "")
    of = check = ""
    for row in rows:
        if row.of != of:
            lines.add_row(printable(row.of), style="bold cyan")
        if row.check != check or row.of != of:
            lines.add_row(f"  {printable(row.check)}", style="bold")
        of, check = row.of, row.check
        what, value, bound = cells(row)
        lines.add_row(f"    {printable(what)}", value, bound, Text(row.verdict, style=STYLES[row.verdict]))
    out = console()
    out.print(lines)
    counts = {verdict: sum(row.verdict == verdict for row in rows) for verdict in STYLES}
    out.print(f"\n{counts['pass']} pass, {counts['FAIL']} fail, {counts['skipped']} skipped", style="bold")


def cells(row: Row) -> tuple[str, str, str]:
    """Return what was measured, its value and bound; if nothing was, the reason."""
    found = row.measurement
    if found is None:
        return row.reason, "", ""
    return found.what, f"{found.value:.3g}", f"{found.relation} {found.tolerance:.3g}"
