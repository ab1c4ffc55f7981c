"""The data sets that are included: `assets/NAME.npz`, and what is known of each in `assets/facts.json`. No torch."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sddit.interfaces import DataFacts, Split

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

ASSETS = Path(__file__).parent / "assets"


@dataclass(frozen=True, slots=True)
class Table:
    """One split in memory."""

    images: NDArray[np.uint8]  # [n, C, H, W], grey levels 0..levels
    labels: NDArray[np.int64]  # [n]
    levels: int = 255


def embedded_facts(name: str) -> DataFacts:
    """Return the facts of an embedded set from JSON, without reading images."""
    known = _known()[name]
    return DataFacts(
        image=tuple(known["image"]),
        class_names=tuple(known["class_names"]),
        train_size=known["train_size"],
        test_size=known["test_size"],
        fingerprint=known["fingerprint"],
        mean=tuple(known["mean"]),
        std=tuple(known["std"]),
        source=f"embedded: {known['title']}, {known['train_size']} + {known['test_size']} images",
        domain=known.get("domain", name),
    )


def embedded_table(name: str, split: Split) -> Table:
    """Return the images and labels of one split of an embedded set."""
    import numpy as np

    with np.load(ASSETS / f"{name}.npz", allow_pickle=False) as arrays:
        labels = arrays[f"{split}_labels"].astype(np.int64)
        return Table(arrays[f"{split}_images"], labels, _known()[name]["levels"])


def measure(train: Table, test: Table) -> dict[str, Any]:
    """Return the facts that are measured from the images: sizes, fingerprint, mean and standard deviation."""
    from sddit.data.moments import PixelMoments

    moments = PixelMoments(train.images.shape[1])
    moments.add(train.images)
    mean, std = moments.of_unit_range(train.levels)
    sizes = {"train_size": len(train.labels), "test_size": len(test.labels)}
    return {**sizes, "fingerprint": fingerprint(train, test), "mean": mean, "std": std}


def fingerprint(train: Table, test: Table) -> str:
    """Return a hash of all images and labels and of the split they are in."""
    digest = sha256()
    for table in (train, test):
        digest.update(f"{table.images.shape} {table.levels}\n".encode())
        digest.update(table.images.tobytes())
        digest.update(table.labels.astype("<i8").tobytes())
    return digest.hexdigest()


def without_labels(facts: DataFacts) -> DataFacts:
    """Return the same images with no classes: what `labels = false` asks for."""
    return replace(facts, class_names=(), fingerprint=f"{facts.fingerprint}-unlabelled")


@cache
def _known() -> dict[str, Any]:
    known: dict[str, Any] = json.loads((ASSETS / "facts.json").read_text(encoding="utf-8"))
    return known
