"""`sddit-run pack`: write a cache of latents from the moments of an encoder elsewhere."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import click

from sddit.cli.options import PathOption, SdditCommand, json_and_progress_option
from sddit.cli.output import console, echo, error_console, print_json, show_progress
from sddit.data.latent_statistics import Layout
from sddit.data.latents import Flip

if TYPE_CHECKING:
    from sddit.data.latent_sources import Shard
    from sddit.progress import Progress

EXAMPLES = """
sddit-run pack *.npz OUT --layout mean+logvar --scale 0.18215 --encoder NAME
sddit-run pack EDM2 OUT --scale 0.18215 --encoder NAME --classes NAMES.txt
sddit-run pack LMDB OUT --scale 0.18215 --encoder NAME --flip both
sddit-run my.toml dataset.name=latents dataset.path=latents
"""


@click.command("pack", cls=SdditCommand, examples=EXAMPLES)
@click.argument("parts", nargs=-1, required=True, type=PathOption())
@click.argument("out", type=PathOption())
@click.option(
    "--layout",
    type=click.Choice(get_args(Layout)),
    help="What the second half of the channels of .npz files is; other kinds have their own.",
)
@click.option(
    "--scale",
    type=click.FloatRange(0, float("inf"), min_open=True, max_open=True),
    required=True,
    metavar="NUMBER",
    help="Factor that brings latents to a standard deviation near 1: 0.18215 for Stable Diffusion's first VAE.",
)
@click.option(
    "--shift",
    type=float,
    default=0.0,
    metavar="NUMBER",
    help="Number that is subtracted from latents before the scale.",
)
@click.option(
    "--encoder", required=True, metavar="TEXT", help="Name of the encoder, with the range of pixels that it was fed."
)
@click.option(
    "--classes",
    type=PathOption(),
    metavar="FILE",
    help="A file with the name of a class on each line, by number.  [default: unconditional]",
)
@click.option("--flip", type=click.Choice(get_args(Flip)), default="none", help="Which mirror images are among them.")
@click.option(
    "--channels",
    metavar="N",
    type=click.IntRange(1),
    default=4,
    help="Channels of a latent, which an LMDB does not state.",
)
@click.option("--allow-implausible", is_flag=True, help="Write moments that do not look like the layout and the scale.")
@json_and_progress_option
def pack(
    parts: tuple[Path, ...],
    out: Path,
    layout: Layout | None,
    scale: float,
    shift: float,
    encoder: str,
    classes: Path | None,
    flip: Flip,
    channels: int,
    allow_implausible: bool,
    as_json: bool,
) -> None:
    """Write a cache of latents from moments that were made elsewhere.

    PARTS are .npz files with `moments` [n, 2C, h, w] and `labels` [n]; folders of EDM2 or REPA with dataset.json;
    .safetensors of LightningDiT, or a folder of them; or the LMDB of MaskDiT. Moments are those before scaling.
    OUT is a new folder. Moments that do not look like their layout and scale are refused. After an interruption, the
    same command starts over and writes the same files.
    """
    from sddit.data.class_names import read_names
    from sddit.data.latent_parts import layout_of, read_sources
    from sddit.data.latent_sources import PartsRequest
    from sddit.data.latent_writing import write_cache
    from sddit.data.latents import read_index

    if scale != scale:
        raise click.BadParameter("nan is not a number above 0", param_hint="--scale")
    names = read_names(classes) if classes else []
    request = PartsRequest(labelled=bool(names), flip=flip, channels=channels)
    with show_progress(error_console() if as_json else console()) as progress:
        index = write_cache(
            out,
            counted(read_sources(parts, request), progress),
            layout=layout_of(parts, layout),
            scale=scale,
            shift=shift,
            encoder=encoder,
            class_names=names,
            flip=flip,
            allow_implausible=allow_implausible,
        )
    packed = read_index(str(index.parent)).index
    if as_json:
        print_json({"folder": str(out), "latents": packed.rows})
        return
    echo(f"{out}: {packed}")


def counted(shards: Iterable[Shard], progress: Progress) -> Iterator[Shard]:
    """Yield shards, and show how many latents are read."""
    progress.stage("packing")
    done = 0
    for moments, labels in shards:
        yield moments, labels
        done += len(labels)
        progress.advance(done)
