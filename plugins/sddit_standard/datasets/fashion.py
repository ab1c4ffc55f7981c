"""Fashion-MNIST: the embedded subset, or the four files as Zalando publishes them. No torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sddit.data.facts_cache import cached
from sddit.errors import error, expand_user
from sddit.interfaces import DataFacts, Split
from sddit_standard.datasets.embedded import Table, embedded_facts, embedded_table

SYSTEM = Path("/usr/share/datasets/fashion-mnist")
"""Where Debian's package dataset-fashion-mnist puts the files."""

CLASS_NAMES = ("T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")

FILES = tuple(f"{part}-{kind}-ubyte.gz" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1"))


def fashion_facts(source: str) -> DataFacts:
    """Return the facts of Fashion-MNIST from `source`: embedded, system, or a folder. No other source is tried."""
    if source == "embedded":
        return embedded_facts("fashion")
    folder = _folder(source)
    stamp = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in _files(folder)]
    measured = cached(["fashion", str(folder.resolve()), stamp], lambda: _measure(folder))
    return DataFacts(
        image=(1, 28, 28),
        class_names=CLASS_NAMES,
        train_size=measured["train_size"],
        test_size=measured["test_size"],
        fingerprint=measured["fingerprint"],
        mean=tuple(measured["mean"]),
        std=tuple(measured["std"]),
        source=f"{folder}: {measured['train_size']} + {measured['test_size']} images",
        domain="fashion",
    )


def fashion_table(source: str, split: Split) -> Table:
    """Return the images and labels of one split."""
    if source == "embedded":
        return embedded_table("fashion", split)
    from sddit_standard.datasets.idx import read_table

    return read_table(_folder(source), split)


def _measure(folder: Path) -> dict[str, Any]:
    """Measure what must be read from the images."""
    from sddit_standard.datasets.embedded import measure
    from sddit_standard.datasets.idx import read_table

    return measure(read_table(folder, "train"), read_table(folder, "test"))


def _folder(source: str) -> Path:
    return SYSTEM if source == "system" else expand_user(source, "dataset.source")


def _files(folder: Path) -> list[Path]:
    missing = [name for name in FILES if not (folder / name).is_file()]
    if missing:
        fix = 'source = "embedded" needs no files'
        if folder == SYSTEM:
            fix = f"apt-get install dataset-fashion-mnist; or {fix}"
        raise error(
            "SD-D300",
            "the files of Fashion-MNIST are not there",
            where=f"dataset.source, {folder}",
            got=f"missing {', '.join(missing)}",
            expect=f"a folder with {', '.join(FILES)}",
            fix=fix,
        )
    return [folder / name for name in FILES]
