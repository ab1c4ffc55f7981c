"""`sddit-run encode`: encode images with a codec, into a cache of latents to train on."""

from __future__ import annotations

from pathlib import Path

import click

from sddit.cli.options import PathOption, SdditCommand, device_option, json_and_progress_option, plugin_option
from sddit.cli.output import console, echo, error_console, notice, print_json, show_progress
from sddit.plugins.host import host

EXAMPLES = """
sddit-run encode emoji latents --size 64 --codec tiny_kl
sddit-run encode PHOTOS latents --size 256 --codec taef2 codec.path=WEIGHTS
sddit-run encode train.zip latents --size 256 --codec diffusers codec.path=VAE
sddit-run my.toml dataset.name=latents dataset.path=latents
"""


@click.command("encode", cls=SdditCommand, examples=EXAMPLES)
@click.argument("source", type=PathOption())
@click.argument("out", type=PathOption())
@click.argument("settings", nargs=-1, metavar="[KEY=VALUE ...]")
@click.option("--codec", "codec", metavar="NAME", help="The codec; sddit-run show codecs lists them.  [required]")
@click.option(
    "--size", metavar="N", type=click.IntRange(1), help="Height and width to which images are scaled and cut."
)
@click.option(
    "--flip", type=click.Choice(["none", "both"]), default="none", help="both: also encode the mirror image of each."
)
@click.option("--licence", default="", metavar="TEXT", help="Licence of the images, which model cards repeat.")
@click.option(
    "--shard", metavar="N", type=click.IntRange(1), help="Images per file.  [default: 1,024, and at most 64 MiB]"
)
@click.option(
    "--nproc",
    metavar="N",
    type=click.IntRange(1),
    help="Processes that share the files.  [default: one per core, or per GPU with --device cuda]",
)
@click.option("--allow-implausible", is_flag=True, help="Write latents that do not look as the codec says.")
@device_option
@plugin_option
@json_and_progress_option
def encode(
    source: Path,
    out: Path,
    settings: tuple[str, ...],
    codec: str | None,
    size: int | None,
    flip: str,
    licence: str,
    shard: int | None,
    nproc: int | None,
    allow_implausible: bool,
    device: str,
    plugin: tuple[str, ...],
    as_json: bool,
) -> None:
    """Encode images into latents to train on.

    SOURCE is a folder, a .zip, WebDataset shards or a saved Hugging Face data set; the name of an included data set; or
    a run or a recipe, whose data set and codec are used. KEY=VALUE are settings of the data set and the codec, such as
    dataset.holdout=0.05 or codec.path=WEIGHTS. Rerun the same command to continue.
    """
    host().announce = notice
    for given in plugin:
        host().use_given(given, where="command line")
    from sddit.data.latents import read_index
    from sddit.encoding.encode import Encoding, default_processes, encoding_of
    from sddit.encoding.encode import encode as encode_images

    stated = (f"dataset.size={size}",) if size is not None else ()
    encoding: Encoding = encoding_of(
        source,
        (*stated, *settings),
        codec=codec,
        flip="both" if flip == "both" else "none",
        licence=licence,
        shard_images=shard,
        allow_implausible=allow_implausible,
    )
    with show_progress(error_console() if as_json else console()) as progress:
        finished = encode_images(
            encoding, out, device=device, processes=nproc or default_processes(device), progress=progress
        )
    index = read_index(str(out)).index
    if as_json:
        print_json({"folder": str(out), "latents": index.rows, "already_finished": finished})
        return
    if finished:
        echo("already encoded")
    echo(f"{out}: {index}")
