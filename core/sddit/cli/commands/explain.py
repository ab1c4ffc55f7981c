"""`sddit-run explain`: print the description of an error code."""

from __future__ import annotations

import re
from collections.abc import Collection

import click

from sddit.cli.options import SdditCommand, json_option
from sddit.cli.output import console, print_json, print_table
from sddit.errors import catalogue, error, one_of

EXAMPLES = """
sddit-run explain SD-R102
sddit-run explain              all codes, with their exit statuses
"""
EXITS = {
    0: "done, or nothing to do",
    1: "a bug in the toolkit",
    2: "usage, recipe, sampling or evaluation",
    3: "plugin, dependency or environment",
    4: "data set",
    5: "checkpoint or resume",
    6: "non-finite or diverged numbers",
    7: "disk or memory exhausted",
    8: "run folder: lock, permission, exists",
    9: "a peer process failed or hung",
    130: "stopped by Ctrl-C, saved",
    138: "stopped by SIGUSR1, saved",
    143: "stopped by SIGTERM, saved",
}


@click.command("explain", cls=SdditCommand, examples=EXAMPLES)
@click.argument("code", required=False)
@json_option
def explain(code: str | None, as_json: bool) -> None:
    """Explain an error code: its cause and what to do."""
    pages = catalogue()
    if code is not None:
        code = full_code(code, pages)
        if code not in pages:
            raise error("SD-R171", f"unknown error code {code!r}", where="command line", expect=one_of(code, pages))
        pages = {code: pages[code]}
    if as_json:
        print_json({name: dict(page) for name, page in pages.items()})
    elif code is None:
        rows = [(name, str(page["exit"]), page["title"]) for name, page in sorted(pages.items())]
        print_table(["code", "exit", ""], rows)
        click.echo()
        print_table(["exit", ""], [(str(status), meaning) for status, meaning in EXITS.items()])
    else:
        page, out = pages[code], console()
        out.print(f"{code}: {page['title']}", style="bold")
        out.print(f"\n{page['cause']}\n")
        out.print(f"What to do: {page['remedy']}\n")
        out.print(f"Exit status {page['exit']}: {EXITS[page['exit']]}.", style="dim")


def full_code(typed: str, codes: Collection[str]) -> str:
    """Return the code meant by `sd-p220`, `P220` or `220`; if there is none, what was typed, in capitals."""
    short = re.sub(r"^SD[-_ ]?|[^A-Z0-9]", "", typed.strip().upper())
    matches = [code for code in codes if code in (f"SD-{short}", f"SD-{code[3]}{short}")]
    return matches[0] if len(matches) == 1 else f"SD-{short}"
