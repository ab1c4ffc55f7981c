"""`sddit-run reference`: write the statistics of real images that samples are compared with."""

from __future__ import annotations

from pathlib import Path

import click

from sddit.cli.modes import ModeCommand, flag
from sddit.cli.options import PathOption, device_option, json_and_progress_option, plugin_option
from sddit.cli.output import console, echo, error_console, print_json, show_progress
from sddit.interfaces import EvaluateMode, ModeOption

EXAMPLES = """
sddit-run reference IMAGES real.npz --size 256 --inception WEIGHTS.pth
sddit-run reference RUN real.npz --inception WEIGHTS.pth
sddit-run reference my.toml real.npz --inception WEIGHTS.pth
sddit-run evaluate RUN --inception WEIGHTS.pth --reference real.npz
"""


class ReferenceCommand(ModeCommand):
    def options_of(self, mode: EvaluateMode) -> tuple[ModeOption, ...]:
        return mode.statistics_options


@click.command("reference", cls=ReferenceCommand, examples=EXAMPLES)
@click.argument("source", type=PathOption())
@click.argument("out", type=PathOption(), metavar="OUT.npz")
@click.argument("settings", nargs=-1, metavar="[KEY=VALUE ...]")
@click.option(
    "--size", metavar="N", type=click.IntRange(1), help="Height and width to which images are scaled and cut."
)
@device_option
@plugin_option
@json_and_progress_option
def reference(
    source: Path,
    out: Path,
    settings: tuple[str, ...],
    size: int | None,
    device: str,
    plugin: tuple[str, ...],
    as_json: bool,
    **paths: Path | None,
) -> None:
    """Compute the statistics of real images.

    SOURCE is a folder of images: all are used. Or it is a run or a recipe: the images it trains on are used.
    KEY=VALUE are settings of the data set of a folder, such as dataset.bits=12.
    """
    chosen = reference.chosen_modes(paths)
    if len(chosen) != 1:
        offered = " or ".join(flag(option.name) for mode in reference.modes() for option in mode.statistics_options)
        raise click.UsageError(f"{offered} is missing: the network whose features are used")
    [(mode, files)] = chosen
    from sddit.evaluation.reference import write_reference

    stated = (f"dataset.size={size}",) if size is not None else ()
    with show_progress(error_console() if as_json else console()) as progress:
        record = write_reference(
            source, out, mode, paths=files, settings=(*stated, *settings), device=device, progress=progress
        )
    if as_json:
        print_json(record.model_dump())
        return
    crop = f", crop {record.crop}" if record.crop else ""
    echo(f"{out}: {record.images:,} images of {record.height}x{record.width} pixels{crop}")
