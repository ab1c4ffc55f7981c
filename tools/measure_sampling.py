"""Measure the memory that sampling, decoding, scoring and writing many images takes.

    python tools/measure_sampling.py [--samples 50000] [--size 64]

A run of toys on latents samples first a few images, then many, each in a process of its own, and prints the peak of
memory of both. The codec is a toy: it draws squares of one colour. The features are the 768 of the extractor `pixels`.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

from sddit.data.codec_record import record_of
from sddit.data.latent_writing import write_cache
from sddit.data.latents import ImageSource
from sddit.interfaces import Selected
from sddit.plugins.host import Host, using_host
from sddit.progress import Progress
from sddit.recipes.resolve import resolve
from sddit.runs.pipeline import run
from sddit.storage.run_folder import SAMPLES
from sddit.testing.toys import plugin
from sddit.testing.toys.params import ToyCodecParams
from sddit.testing.toys.plugin import TOY_RECIPE
from sddit_standard.datasets.params import FolderParams

FEW = 1000
IMAGES = 400  # of the data set
SIDE = 8  # pixels of a square of the toy codec
RECIPE = """
[codec]
name = "toy"
side = {side}
[evaluate]
samples = {samples}
batch = 64
previews = 0
features = ["pixels"]
[dataset]
name = "latents"
path = "{cache}"
"""


def write_images(folder: Path, size: int) -> None:
    """Write images of noise in two classes."""
    from PIL import Image

    noise = np.random.default_rng(0)
    for number in range(IMAGES):
        path = folder / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise.integers(0, 256, (size, size, 3), dtype=np.uint8)).save(path)


def write_latents(host: Host, images: Path, cache: Path, size: int) -> None:
    """Encode the images with the toy codec."""
    dataset, toy = host.registries.datasets.get("folder"), host.registries.codecs.get("toy")
    settings = {"path": str(images), "size": size, "holdout": 0.5}
    codec = Selected(toy, ToyCodecParams(side=SIDE))
    params = FolderParams.model_validate(settings)
    facts, encoder, shards = params.facts(), codec.build(device=torch.device("cpu")), []
    for split in ("train", "test"):
        data = dataset.build(params, split=split)
        x, labels = data.fetch(range(len(data)))
        shards.append((torch.cat(encoder.encode(data.to_images(x)), dim=1).numpy(), labels.numpy()))
    source = ImageSource(
        dataset="sddit/folder",
        settings=settings,
        fingerprint=facts.fingerprint,
        train=facts.train_size,
        test=facts.test_size,
    )
    record, names = record_of(codec), facts.class_names
    write_cache(
        cache,
        shards,
        layout="mean+std",
        scale=1.0,
        encoder="toy",
        class_names=names,
        codec=record,
        images=source,
        allow_implausible=True,
    )


def measure(samples: int, size: int) -> None:
    """Run, and print the peak of memory of this process and the bytes of the images."""
    host = Host(builtins=("sddit",))
    host.add("toy", plugin)
    with tempfile.TemporaryDirectory() as name, using_host(host):
        folder = Path(name)
        write_images(folder / "images", size)
        write_latents(host, folder / "images", folder / "cache", size)
        tables = RECIPE.format(side=SIDE, samples=samples, cache=folder / "cache")
        path = folder / "toy.toml"
        path.write_text(TOY_RECIPE.replace('[dataset]\nname = "toy"', tables))
        ended = run(resolve(path), out=folder / "runs", device="cpu", progress=Progress())
        written = (ended.folder / SAMPLES).stat().st_size
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{samples:>7,} images of {size}x{size}: peak {peak:,.0f} MiB; samples.npz {written / 2**20:,.0f} MiB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=50_000)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--alone", action="store_true", help="measure in this process")
    given = parser.parse_args()
    if given.alone:
        measure(given.samples, given.size)
        return
    for samples in (FEW, given.samples):
        words = ["--alone", "--samples", str(samples), "--size", str(given.size)]
        subprocess.run([sys.executable, __file__, *words], check=True)


if __name__ == "__main__":
    main()
