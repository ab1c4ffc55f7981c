"""Write a folder of cached latents, the data set `latents`, from the moments of your own VAE.

    python tools/make_latents.py OUT part-0.npz part-1.npz --layout mean+logvar --scale 0.18215 \\
        --encoder sd-vae-ft-ema --classes names.txt

Each source makes one shard: an .npz file with `moments` [n, 2C, h, w] (float16 or float32, before scaling) and `labels`
[n], or a folder of EDM2 or REPA with dataset.json and `img-mean-std-*.npy` files (layout mean+std), read 4096 images at
a time. Without --classes there may be no labels, or 0 for each.

The names file has the name of a class on each line, in the order of the labels; blank lines at its end do not count.
Moments that do not look like the layout are refused: `sddit.data.latent_statistics` says by which rules.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import get_args

from sddit.cli.script import run_script
from sddit.data.class_names import read_names
from sddit.data.latent_sources import read_sources
from sddit.data.latent_statistics import Layout
from sddit.data.latent_writing import write_cache
from sddit.data.latents import Flip


def finite_scale(text: str) -> float:
    """Return a scale above 0."""
    try:
        scale = float(text)
    except ValueError:
        scale = 0.0
    if not 0 < scale < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a number above 0")
    return scale


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="a new folder")
    parser.add_argument("sources", type=Path, nargs="+", help=".npz files, or folders with dataset.json")
    parser.add_argument(
        "--layout", choices=get_args(Layout), required=True, help="what the second half of the channels is"
    )
    parser.add_argument("--scale", type=finite_scale, required=True, help="0.18215 for Stable Diffusion's first VAE")
    parser.add_argument("--encoder", required=True, help="name of the VAE, and the range of pixels it was fed")
    parser.add_argument(
        "--classes", type=Path, help="a file with the name of a class on each line; default: unconditional"
    )
    parser.add_argument("--flip", choices=get_args(Flip), default="none", help="which mirror images are among them")
    parser.add_argument(
        "--allow-implausible", action="store_true", help="write moments that do not look like the layout and scale"
    )
    parser.add_argument("--debug", action="store_true", help="show full tracebacks of errors")
    given = parser.parse_args()
    names = read_names(given.classes) if given.classes else []
    settings = {"layout": given.layout, "scale": given.scale, "encoder": given.encoder, "flip": given.flip}
    parts = read_sources(given.sources, labelled=bool(names))
    print(write_cache(given.out, parts, class_names=names, allow_implausible=given.allow_implausible, **settings))


if __name__ == "__main__":
    run_script(main)
