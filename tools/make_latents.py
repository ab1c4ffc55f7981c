"""Write a folder of cached latents, the data set `latents`, from the moments of your own VAE.

    python tools/make_latents.py OUT part-0.npz part-1.npz --layout mean+logvar --scale 0.18215 \\
        --encoder sd-vae-ft-ema --classes names.txt

Each source makes one shard: an .npz file with `moments` [n, 2C, h, w] (float16 or float32, before scaling) and `labels`
[n], or a folder of EDM2 or REPA with dataset.json and `img-mean-std-*.npy` files (layout mean+std), read 4096 images at
a time.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from sddit.data.latents import Flip, Layout, write_cache

AT_ONCE = 4096  # images of one shard from a folder

Shard = tuple[NDArray[Any], NDArray[np.int64]]


def shards(sources: list[Path]) -> Iterator[Shard]:
    """Yield moments and labels, one source after another."""
    for source in sources:
        if source.is_dir():
            yield from from_folder(source)
        else:
            with np.load(source, allow_pickle=False) as arrays:
                yield arrays["moments"], arrays["labels"]


def from_folder(folder: Path) -> Iterator[Shard]:
    """Read EDM2's form: dataset.json lists (file, label); each file holds means and standard deviations [2C, h, w]."""
    listed = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))["labels"]
    for start in range(0, len(listed), AT_ONCE):
        some = listed[start : start + AT_ONCE]
        moments = np.stack([np.load(folder / name, allow_pickle=False) for name, _ in some]).astype(np.float32)
        yield moments, np.array([label for _, label in some], dtype=np.int64)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="a new folder")
    parser.add_argument("sources", type=Path, nargs="+", help=".npz files, or folders with dataset.json")
    parser.add_argument(
        "--layout", choices=get_args(Layout), required=True, help="what the second half of the channels is"
    )
    parser.add_argument("--scale", type=float, required=True, help="0.18215 for Stable Diffusion's first VAE")
    parser.add_argument("--encoder", required=True, help="name of the VAE, and the range of pixels it was fed")
    parser.add_argument(
        "--classes", type=Path, help="a file with the name of a class on each line; default: unconditional"
    )
    parser.add_argument("--flip", choices=get_args(Flip), default="none", help="which mirror images are among them")
    given = parser.parse_args()
    names = given.classes.read_text(encoding="utf-8").splitlines() if given.classes else []
    settings = {"layout": given.layout, "scale": given.scale, "encoder": given.encoder, "flip": given.flip}
    print(write_cache(given.out, shards(given.sources), class_names=names, **settings))


if __name__ == "__main__":
    main()
