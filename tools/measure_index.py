"""Measure the time and memory that a list of many images takes, for each kind of source. Images are a few bytes each.

    python tools/measure_index.py [--images 1300000] [--only zip] [--folder FOLDER]

Prints for each source the seconds and the peak of memory of listing it the first time and from the cache, above that of
the imported modules. Nothing is decoded. The data are written to a temporary folder and removed.
"""

from __future__ import annotations

import argparse
import json
import os
import struct
import subprocess
import sys
import tarfile
import tempfile
import time
import zlib
from collections.abc import Iterator
from contextlib import suppress
from importlib import import_module
from io import BytesIO
from pathlib import Path
from typing import Any

CLASSES = 1000
PER_SHARD = 10_000
DATA = b"0123456789"  # of each image


def write_folder(root: Path, count: int) -> dict[str, Any]:
    """Write class folders."""
    for label in range(CLASSES):
        (root / f"n{label:08}").mkdir(parents=True)
    for number in range(count):
        (root / f"n{number % CLASSES:08}" / f"n{number % CLASSES:08}_{number}.JPEG").write_bytes(DATA)
    return {"name": "folder", "path": str(root)}


def write_zip(root: Path, count: int) -> dict[str, Any]:
    """Write a .zip in EDM2's form, entry by entry: `zipfile` would keep them all in memory."""
    root.mkdir()
    with (root / "x.zip").open("wb") as file, tempfile.TemporaryFile() as directory:
        at = 0
        for name, data in zip_entries(count):
            crc, where = zlib.crc32(data), at
            fixed = (20, 0, 0, 0, 33, crc, len(data), len(data), len(name))
            local = struct.pack("<4s5H3L2H", b"PK\3\4", *fixed, 0) + name + data
            at += file.write(local)
            directory.write(struct.pack("<4s6H3L5H2L", b"PK\1\2", 20, *fixed, 0, 0, 0, 0, 0, where) + name)
        size = directory.tell()
        directory.seek(0)
        while piece := directory.read(2**20):
            file.write(piece)
        total = count + 1
        file.write(struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, total, total, size, at))
        file.write(struct.pack("<4sLQL", b"PK\6\7", 0, at + size, 1))
        file.write(struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0))
    return {"name": "zip", "path": str(root / "x.zip")}


def zip_entries(count: int) -> Iterator[tuple[bytes, bytes]]:
    """Yield names and bytes: the images, and dataset.json."""
    labels = BytesIO()
    labels.write(b'{"labels": [')
    for number in range(count):
        name = f"{number // 1000:05}/img{number:08}.png"
        labels.write(f'{", " if number else ""}["{name}", {number % CLASSES}]'.encode())
        yield name.encode(), DATA
    yield b"dataset.json", labels.getvalue() + b"]}"


def write_shards(root: Path, count: int) -> dict[str, Any]:
    """Write WebDataset's shards."""
    root.mkdir()
    for first in range(0, count, PER_SHARD):
        with (root / f"train-{first // PER_SHARD:06}.tar").open("wb") as file:
            for number in range(first, min(count, first + PER_SHARD)):
                for suffix, data in (("jpg", DATA), ("cls", str(number % CLASSES).encode())):
                    entry = tarfile.TarInfo(f"n{number % CLASSES:08}_{number:08}.{suffix}")
                    entry.size = len(data)
                    file.write(entry.tobuf(tarfile.USTAR_FORMAT) + data.ljust(tarfile.BLOCKSIZE, b"\0"))
            file.write(bytes(20 * tarfile.BLOCKSIZE))
    return {"name": "webdataset", "path": str(root)}


def write_saved(root: Path, count: int) -> dict[str, Any]:
    """Save a data set with Hugging Face's library, which must be installed."""
    datasets, pyarrow = import_module("datasets"), import_module("pyarrow")
    images = pyarrow.StructArray.from_arrays(
        [pyarrow.array([DATA] * count, pyarrow.binary()), pyarrow.nulls(count, pyarrow.string())], ["bytes", "path"]
    )
    labels = pyarrow.array(range(count), pyarrow.int64())
    labels = import_module("pyarrow.compute").bit_wise_and(labels, 511)
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    table = pyarrow.table([images, labels], names=["image", "label"]).cast(features.arrow_schema)
    datasets.Dataset(table).save_to_disk(os.fspath(root))
    return {"name": "hf", "path": str(root)}


WRITERS = {"folder": write_folder, "zip": write_zip, "webdataset": write_shards, "hf": write_saved}


def peak_memory() -> float:
    """Return the peak of this process's own memory in MB, without pages of mapped files."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines["VmHWM"].split()[0]) / 1000


def list_once(dataset: dict[str, Any]) -> None:
    """List the images of a data set in this process, and print seconds, MB and the number of images as JSON."""
    from sddit.plugins.host import host

    name = dataset.pop("name")
    params: Any = host().registries.datasets.get(name).params(**dataset)
    import_module("sddit_standard.datasets.image_facts")
    if name == "hf":
        import_module("datasets")
    import_module(type(params).__module__)
    before, began = peak_memory(), time.monotonic()
    index = params.source().contents.index
    seconds, memory = time.monotonic() - began, peak_memory() - before
    held = sum(array.nbytes for array in index.arrays().values()) / 1e6
    print(json.dumps({"seconds": seconds, "peak": memory, "before": before, "held": held, "images": len(index)}))


def measure(dataset: dict[str, Any], cache: Path) -> dict[str, float]:
    """Return what `list_once` prints in a process of its own."""
    environment = {**os.environ, "XDG_CACHE_HOME": str(cache), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, __file__, "--list", json.dumps(dataset)]
    said = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE)
    result: dict[str, float] = json.loads(said.stdout)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1_300_000, help="number of images")
    parser.add_argument("--only", choices=WRITERS, help="measure one kind of source")
    parser.add_argument("--folder", type=Path, help="where to write the data; not set: the system's temporary folder")
    parser.add_argument("--list", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.list:
        list_once(json.loads(given.list))
        return
    print(f"{given.images:,} images: seconds and peak MB of the first listing, of the cached one; MB that stay")
    for name in [given.only] if given.only else WRITERS:
        with tempfile.TemporaryDirectory(dir=given.folder) as work, suppress(ImportError):
            dataset = WRITERS[name](Path(work) / "data", given.images)
            rows = [measure(dataset, Path(work) / "cache") for _ in range(2)]
            assert rows[0]["images"] == given.images
            cells = [f"{row['seconds']:6.1f} s {row['peak']:5.0f} MB" for row in rows]
            print(f"{name:<10} {cells[0]}   {cells[1]}   {rows[0]['held']:5.0f} MB", flush=True)


if __name__ == "__main__":
    main()
