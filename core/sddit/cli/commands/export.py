"""`sddit-run export`: write the network of a run to a folder to share."""

from __future__ import annotations

from pathlib import Path

import click

from sddit.cli.options import LayoutOption, PathOption, SdditCommand, non_empty, step_option
from sddit.cli.output import echo, notice
from sddit.exchange.layouts import OURS
from sddit.plugins.host import host

EXAMPLES = """
sddit-run export runs/quickstart-4f2c91d07a55    for sddit.load(DIR)
sddit-run export RUN --out my-model --weights student
sddit-run export RUN --layout diffusers
"""


@click.command("export", cls=SdditCommand, examples=EXAMPLES)
@click.argument("run", type=PathOption())
@click.option(
    "--out",
    type=PathOption(),
    metavar="DIR",
    help="Folder to write to: a new one, or that of an earlier export.  [default: RUN/export, or RUN/export-LAYOUT]",
)
@click.option(
    "--weights",
    type=non_empty,
    metavar="LABEL",
    help="Label of an [ema], student, or a label of sddit-run ema.  [default: the weights that are sampled]",
)
@step_option
@click.option(
    "--layout",
    cls=LayoutOption,
    default=OURS,
    metavar="NAME",
    help="Tensor names to write: ours, or a published layout.",
)
def export(run: Path, out: Path | None, weights: str | None, step: int | None, layout: str) -> None:
    """Export weights, config and model card of a run."""
    from sddit.exchange.exporting import export_run

    host().announce = notice
    exported = export_run(run, out=out, weights=weights or "", step=step, layout=layout)
    for path in exported.files:
        echo(path)
    if exported.note:
        notice(f"note: {exported.note}")
