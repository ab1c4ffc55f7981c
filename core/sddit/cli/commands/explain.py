"""`sddit-run explain`: print the description of an error code."""

from __future__ import annotations

import click

from sddit.cli.common import SdditCommand, console, json_option, print_json, table
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
@json_option()
def explain(code: str | None, as_json: bool) -> None:
    """Explain an error code: its cause and what to do."""
    pages = catalogue()
    if code is not None:
        code = full_code(code)
        if code not in pages:
            raise error("SD-R171", f"unknown error code {code!r}", where="command line", expect=one_of(code, pages))
        pages = {code: pages[code]}
    if as_json:
        print_json({name: dict(page) for name, page in pages.items()})
    elif code is None:
        print_index()
    else:
        print_page(code)


def full_code(code: str) -> str:
    """Return `SD-R102` for `r102` and `sd-r102`."""
    return code.upper() if code.upper().startswith("SD-") else f"SD-{code.upper()}"


def print_page(code: str) -> None:
    """Print title, cause, remedy and exit status."""
    page, out = catalogue()[code], console()
    out.print(f"{code}: {page['title']}", style="bold")
    out.print(f"\n{page['cause']}\n")
    out.print(f"What to do: {page['remedy']}\n")
    out.print(f"Exit status {page['exit']}: {EXITS[page['exit']]}.", style="dim")


def print_index() -> None:
    """Print every code and the meaning of the exit statuses."""
    out = console()
    codes = table("code", "exit", "")
    for code, page in sorted(catalogue().items()):
        codes.add_row(code, str(page["exit"]), page["title"])
    out.print(codes)
    statuses = table("exit", "")
    for status, meaning in EXITS.items():
        statuses.add_row(str(status), meaning)
    out.print()
    out.print(statuses)
