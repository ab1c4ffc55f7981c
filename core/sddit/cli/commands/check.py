"""`sddit-run check`: test each component of a plugin against the contract of its kind, without pytest."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from sddit.cli.options import SdditCommand, json_option
from sddit.cli.output import console, notice, print_json, table
from sddit.errors import SdditError, printable
from sddit.formatting import format_count
from sddit.plugins.host import host

if TYPE_CHECKING:
    from sddit.testing.kit import Checked

EXAMPLES = """
sddit-run check my_loss.py     a plugin in one file
sddit-run check acme           an installed plugin
"""


@click.command("check", cls=SdditCommand, examples=EXAMPLES)
@click.argument("plugin", metavar="FILE|PLUGIN")
@json_option
def check(plugin: str, as_json: bool) -> None:
    """Test the components of a plugin on tiny tensors."""
    from sddit.testing.kit import examine_plugin

    host().announce = notice
    host().raise_for_builtins()
    checked = examine_plugin(plugin, where="command line")
    if as_json:
        print_json([record.to_json() for record in checked])
    else:
        print_rows(checked)
    if problems := [problem for one in checked for problem in one.problems]:
        raise SdditError(*dict.fromkeys(problems))


def print_rows(checked: list[Checked]) -> None:
    """Print each component with what was tested and the number of problems."""
    lines = table("component", "tested", "")
    for one in checked:
        count = len(one.problems)
        verdict = f"[bold red]{format_count(count, 'problem')}[/]" if count else "[green]pass[/]"
        lines.add_row(printable(one.component), one.tested, verdict)
    console().print(lines, markup=True)
