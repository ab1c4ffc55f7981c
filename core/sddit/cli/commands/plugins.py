"""`sddit-run plugins`: list the installed plugins, their origin and what they register."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import click

from sddit.cli.options import SdditCommand, json_option
from sddit.cli.output import console, error_console, notice, print_json, table
from sddit.errors import printable
from sddit.plugins.discovery import PluginInfo
from sddit.plugins.host import host

EXAMPLES = """
sddit-run plugins           third-party plugins by their metadata
sddit-run plugins --load    import all, and list their components
sddit-run plugins --json
"""
STYLES = {"loaded": "green", "failed": "bold red", "not loaded": "dim", "not allowed": "yellow"}


@click.command("plugins", cls=SdditCommand, examples=EXAMPLES)
@click.option("--load", is_flag=True, help="Import third-party plugins too. This runs their code.")
@json_option
def plugins(load: bool, as_json: bool) -> None:
    """List the plugins and what they register."""
    if load:
        host().announce = notice
        host().load_everything()
    rows = list(host().rows.values())
    if as_json:
        print_json([plugin_record(row) for row in rows])
    else:
        print_rows(rows)


def plugin_record(row: PluginInfo) -> dict[str, Any]:
    """Return one plugin as JSON, with the packages that its components lack."""
    record = {name: value for name, value in asdict(row).items() if name not in ("failure", "code")}
    return {**record, "seconds": round(row.seconds, 4), "builtin": row.builtin, "missing": missing(row)}


def missing(row: PluginInfo) -> dict[str, list[str]]:
    """Return {component: packages that it needs and that are not installed}."""
    registries = host().registries.all().values()
    return {c.name: lacking for r in registries for c in r if c.origin == row.name and (lacking := c.missing())}


def print_rows(rows: Sequence[PluginInfo]) -> None:
    """Print the table, then the errors of plugins that failed."""
    out = console()
    lines = table("plugin", "from", "registers", "state")
    for row in rows:
        origin = "sddit" if row.builtin else printable(f"{row.distribution} {row.version}")
        state = f"{row.state}" + (f" in {row.seconds:.1f} s" if row.seconds > 1 else "")
        lines.add_row(printable(row.name), origin, registers(row), f"[{STYLES[row.state]}]{state}[/]")
    out.print(lines, markup=True)
    errors = error_console()
    for row in rows:
        if row.error:
            errors.print(f"\n{row.name}: {printable(row.error)}", style="red", soft_wrap=True)
            if row.where:
                errors.print(f"  at {row.where}", soft_wrap=True)
    if any(row.state == "not loaded" for row in rows):
        out.print("\nThird-party plugins are imported when a recipe names them; --load imports all.", style="dim")


def registers(row: PluginInfo) -> str:
    """Return `losses: denoising`, a line per kind."""
    lacking = missing(row)
    named = {
        kind: [f"{name} (needs {', '.join(lacking[name])})" if name in lacking else name for name in names]
        for kind, names in row.registers.items()
    }
    return "\n".join(f"{kind}: {printable(', '.join(names))}" for kind, names in named.items())
