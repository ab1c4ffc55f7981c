"""`sddit-run publish`: write the results of an ablation for a repository. Imports no torch."""

from __future__ import annotations

from pathlib import Path

import click

from sddit.ablations.planning.records import PLAN
from sddit.cli.options import PathOption, SdditCommand
from sddit.cli.output import echo
from sddit.errors import error

EXAMPLES = """
sddit-run publish runs/teacher_noise-0c11d2e4f3a5 --out results/noise
sddit-run publish ABLATION --out DIR --unfinished   runs finished so far
"""


@click.command("publish", cls=SdditCommand, examples=EXAMPLES)
@click.argument("ablation", type=PathOption())
@click.option("--out", type=PathOption(), metavar="DIR", required=True, help="Folder to write to.")
@click.option("--unfinished", is_flag=True, help="Publish even if runs are missing.")
def publish(ablation: Path, out: Path, unfinished: bool) -> None:
    """Write the results of an ablation to a folder, for a repository.

    Writes README.md with table, figures and conclusions, a row per run and the plan, without weights or paths of this
    machine. The same runs always give the same files. An earlier publication in the folder is replaced; other files
    are kept.
    """
    from sddit.reports.ablation.publish import publish as write

    if not (ablation / PLAN).is_file():
        raise error(
            "SD-T922",
            "no ablation to publish",
            where=str(ablation),
            got="not a folder" if not ablation.is_dir() else f"no {PLAN} in it",
            expect="the folder of an ablation",
            fix="run  sddit-run RECIPE  with a recipe that has [ablation]",
        )
    written = write(ablation, out, unfinished=unfinished)
    size = sum(path.stat().st_size for path in written)
    echo(f"{out}: {len(written)} files, {size / 1e6:.2g} MB, no weights included")
