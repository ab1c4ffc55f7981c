"""Make the embedded data sets: plugins/sddit_standard/datasets/assets/{digits,fashion}.npz, facts.json.

    python tools/make_data_assets.py --digits DIGITS_CSV_GZ --fashion FOLDER

DIGITS_CSV_GZ is `sklearn/datasets/data/digits.csv.gz` of scikit-learn 1.9.1; FOLDER holds the four files of
Fashion-MNIST (Debian's package dataset-fashion-mnist puts them in /usr/share/datasets/fashion-mnist). Needs numpy only.
The same input gives the same arrays, which the fingerprints in facts.json prove.
"""

from __future__ import annotations

import argparse
import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sddit.cli.script import run_script
from sddit.data.order import permutation
from sddit.interfaces import Split
from sddit_standard.datasets.embedded import ASSETS, Table, measure
from sddit_standard.datasets.fashion import CLASS_NAMES
from sddit_standard.datasets.idx import read_table

FACTS = ASSETS / "facts.json"
DIGITS_TEST_PER_CLASS = 36  # 360 of 1797: a fifth
FASHION_PER_CLASS: dict[Split, int] = {"train": 1000, "test": 200}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--digits", type=Path, required=True)
    parser.add_argument("--fashion", type=Path, required=True)
    given = parser.parse_args()
    digits = split_digits(read_digits(given.digits))
    fashion = {
        split: first_of_each_class(read_table(given.fashion, split), n) for split, n in FASHION_PER_CLASS.items()
    }
    facts = json.loads(FACTS.read_text(encoding="utf-8")) | {
        "digits": save("digits", digits, title="handwritten digits (scikit-learn, UCI)", names=[*"0123456789"]),
        "fashion": save("fashion", fashion, title="a balanced subset of Fashion-MNIST", names=list(CLASS_NAMES)),
    }
    FACTS.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


def read_digits(path: Path) -> Table:
    """Return 1797 rows of 64 levels in 0..16 and a label."""
    with gzip.open(path, "rt") as lines:
        rows = np.loadtxt(lines, delimiter=",").astype(np.int64)  # [1797, 65]
    return Table(rows[:, :64].astype(np.uint8).reshape(-1, 1, 8, 8), rows[:, 64], levels=16)


def split_digits(digits: Table) -> dict[Split, Table]:
    """Hold out 36 random images of each class, as a perfect generator asked for 36 of each class would draw them."""
    held = np.zeros(len(digits.labels), dtype=bool)
    for label in range(10):
        members = np.flatnonzero(digits.labels == label)
        held[members[permutation(seed=0, epoch=label, size=len(members))[:DIGITS_TEST_PER_CLASS]]] = True
    return {"train": chosen(digits, np.flatnonzero(~held)), "test": chosen(digits, np.flatnonzero(held))}


def first_of_each_class(table: Table, count: int) -> Table:
    """Return the first `count` images of each class, in the order of the file."""
    firsts = [np.flatnonzero(table.labels == label)[:count] for label in range(10)]
    return chosen(table, np.sort(np.concatenate(firsts)))


def chosen(table: Table, index: NDArray[np.int64]) -> Table:
    return Table(table.images[index], table.labels[index], table.levels)


def save(name: str, splits: dict[Split, Table], *, title: str, names: list[str]) -> dict[str, Any]:
    """Write the arrays and return their facts."""
    arrays = {f"{split}_images": table.images for split, table in splits.items()}
    arrays |= {f"{split}_labels": table.labels.astype(np.uint8) for split, table in splits.items()}
    np.savez_compressed(ASSETS / f"{name}.npz", allow_pickle=False, **arrays)
    train, test = splits["train"], splits["test"]
    return {
        "title": title,
        "image": list(train.images.shape[1:]),
        "levels": train.levels,
        "class_names": names,
        **measure(train, test),
    }


if __name__ == "__main__":
    run_script(main)
