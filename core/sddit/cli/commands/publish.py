"""`sddit-run publish`: an ablation as a folder for a repository. Needs no torch."""

from __future__ import annotations

from pathlib import Path

import click

from sddit.ablations.planning.plan import PLAN
from sddit.cli.common import PathOption, SdditCommand
from sddit.errors import error

EXAMPLES = """
sddit-run publish runs/teacher_noise-0c11d2e4f3a5 --out results/noise
sddit-run publish ABLATION --out DIR --unfinished   runs finished so far
"""


@click.command("publish", cls=SdditCommand, examples=EXAMPLES)
@click.argument("ablation", type=PathOption())
@click.option("--out", type=PathOption(), metavar="DIR", required=True, help="Folder to write to.")
@click.option("--unfinished", is_flag=True, help="Publish although runs are missing.")
def publish(ablation: Path, out: Path, unfinished: bool) -> None:
    """Write what came out of an ablation into a folder.

    README.md with table, figures and conclusion, the report, a row a run, the curves, the plan: no weights, no paths of this
    machine. The same runs give the same bytes.
    """
    from sddit.reports.ablation.publish import publish as write

    if not (ablation / PLAN).is_file():
        raise error(
            "SD-T922",
            "no ablation to publish",
            where=str(ablation),
            got="no folder" if not ablation.is_dir() else f"no {PLAN} in it",
            expect="the folder of an ablation",
            fix="sddit-run RECIPE   makes one, of a recipe with [ablation]",
        )
    written = write(ablation, out, unfinished=unfinished)
    size = sum(path.stat().st_size for path in written)
    click.echo(f"{out}: {len(written)} files, {size / 1e6:.2g} MB, none of weights")
