"""Make the embedded emoji: plugins/sddit_standard/datasets/assets/emoji.npz, and their part of facts.json.

    npm pack emoji-datasource-google@16.0.0
    python tools/make_emoji_asset.py emoji-datasource-google-16.0.0.tgz [--check]

The tarball is only read. The same tarball gives the same arrays: --check writes nothing, and compares every array and
fact with those that are shipped. Takes a minute.
"""

from __future__ import annotations

import argparse
import json
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import file_digest
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sddit.cli.script import run_script
from sddit.data.order import permutation
from sddit_standard.datasets.decode import decode
from sddit_standard.datasets.embedded import ASSETS, measure
from sddit_standard.datasets.emoji import CLASS_NAMES, SIZE, facts_key, select

Arrays = dict[str, NDArray[Any]]

SHA256 = "fb5fd131b362aab7a55542d2a147a79708cce0a8b1c1bbacd470172708b5c438"  # of emoji-datasource-google-16.0.0.tgz
FACTS = ASSETS / "facts.json"
TEST_PER_CLASS = 20
ADULTS = frozenset({"1F468", "1F469", "1F9D1"})  # three genders, whose sequences differ in little but the hair
REGIONAL = range(0x1F1E6, 0x1F200)  # indicators: two of them are the flag of a country


@dataclass(frozen=True, slots=True)
class Emoji:
    """One image. Skin variants have the base of their emoji."""

    codes: str  # such as 1F9D1-200D-1F4BB
    base: str
    label: int
    skin_variant: bool
    pixels: NDArray[np.uint8]  # [64, 64, 3]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tarball", type=Path)
    parser.add_argument("--check", action="store_true")
    given = parser.parse_args()
    arrays = read_emoji(given.tarball)
    facts = facts_of(arrays)
    (check if given.check else save)(arrays, facts)


def save(arrays: Arrays, facts: dict[str, Any]) -> None:
    np.savez_compressed(ASSETS / "emoji.npz", allow_pickle=False, **arrays)
    FACTS.write_text(json.dumps(shipped_facts() | facts, indent=2) + "\n", encoding="utf-8")


def check(arrays: Arrays, facts: dict[str, Any]) -> None:
    """Exit with a message if an array or a fact is not the shipped one."""
    with np.load(ASSETS / "emoji.npz", allow_pickle=False) as shipped:
        stored = shipped_facts()
        different = [key for key in arrays.keys() | set(shipped.files) if not is_same(key, arrays, shipped)]
    different += [key for key, known in json.loads(json.dumps(facts)).items() if stored.get(key) != known]
    if different:
        raise SystemExit(f"not as shipped: {', '.join(sorted(different))}")
    print("the shipped archive and its facts are those of this tarball")


def is_same(key: str, arrays: Arrays, shipped: Any) -> bool:
    if key not in arrays or key not in shipped:
        return False
    return arrays[key].dtype == shipped[key].dtype and np.array_equal(arrays[key], shipped[key])


def shipped_facts() -> dict[str, Any]:
    facts: dict[str, Any] = json.loads(FACTS.read_text(encoding="utf-8"))
    return facts


def facts_of(arrays: Arrays) -> dict[str, Any]:
    """Return the facts of every selection that the keys of the data set can ask for."""
    facts = {}
    for size, flags, skin_variants in product((32, 64), (False, True), (False, True)):
        keys: dict[str, Any] = {"size": size, "flags": flags, "skin_variants": skin_variants}
        train, test = select(arrays, "train", **keys), select(arrays, "test", **keys)
        facts[facts_key(**keys)] = {
            "title": "Noto emoji",
            "domain": "emoji",
            "image": list(train.images.shape[1:]),
            "levels": train.levels,
            "class_names": list(CLASS_NAMES if flags else CLASS_NAMES[:-1]),
            **measure(train, test),
        }
    return facts


def read_emoji(tarball: Path, *, sha256: str = SHA256, test_per_class: int = TEST_PER_CLASS) -> Arrays:
    """Return the arrays of the archive, in the order of Unicode, each emoji before its skin variants."""
    with tarball.open("rb") as file:
        if (found := file_digest(file, "sha256").hexdigest()) != sha256:
            raise SystemExit(f"{tarball} has sha256 {found}, not {sha256}")
    images = list(read_images(tarball))
    held_out = held_out_bases([image for image in images if not image.skin_variant], test_per_class)
    return {
        "images": np.stack([image.pixels for image in images]),
        "labels": np.array([image.label for image in images], dtype=np.uint8),
        "codes": np.array([image.codes for image in images]),
        "skin_variant": np.array([image.skin_variant for image in images]),
        "held_out": np.array([image.base in held_out for image in images]),
    }


def read_images(tarball: Path) -> Iterator[Emoji]:
    """Yield the images of all classes; the category Component is not read. Transparency is composited on white."""
    with tarfile.open(tarball) as archive:
        files = {member.name: member for member in archive.getmembers() if member.isfile()}

        def read(name: str) -> bytes:
            content = archive.extractfile(files[f"package/{name}"])
            assert content is not None  # it is a file
            return content.read()

        def emoji(entry: dict[str, Any], base: str, label: int, *, skin_variant: bool) -> Emoji:
            levels = decode(read(f"img/google/64/{entry['image']}"), name=entry["image"], size=SIZE, channels=3)
            return Emoji(entry["unified"], base, label, skin_variant, levels.transpose(1, 2, 0))

        for entry in sorted(json.loads(read("emoji.json")), key=lambda entry: int(entry["sort_order"])):
            if entry["category"] in CLASS_NAMES:
                base, label = base_code(entry["unified"]), CLASS_NAMES.index(entry["category"])
                yield emoji(entry, base, label, skin_variant=False)
                for variant in entry.get("skin_variations", {}).values():
                    yield emoji(variant, base, label, skin_variant=True)


def base_code(codes: str) -> str:
    """Return the first code point; of a country's flag both."""
    first = codes.partition("-")[0]
    if int(first, 16) in REGIONAL:
        return codes
    return "adult" if first in ADULTS else first


def held_out_bases(emoji: Sequence[Emoji], per_class: int) -> set[str]:
    """Return the bases of the test split: `per_class` emoji of each class, without their skin variants.

    Bases that share an image are held out together, or not at all. Those of two classes stay in the training split.
    """
    groups = grouped(emoji)
    held_out: set[str] = set()
    for label in sorted({one.label for one in emoji}):
        own = [group for group in groups if {one.label for one in group} == {label}]
        missing = per_class
        for index in permutation(seed=0, epoch=label, size=len(own)):
            if len(own[index]) <= missing:
                missing -= len(own[index])
                held_out |= {one.base for one in own[index]}
        assert missing == 0, f"class {label} has no group small enough for the last {missing}"
    return held_out


def grouped(emoji: Sequence[Emoji]) -> list[list[Emoji]]:
    """Return groups of emoji: two are in one group if they have the same base or the same pixels."""
    group_of: dict[str | bytes, list[Emoji]] = {}
    for one in emoji:
        keys = (one.base, one.pixels.tobytes())
        joined = [one]
        for group in {id(group_of[key]): group_of[key] for key in keys if key in group_of}.values():
            joined += group
        for member in joined:
            group_of |= {member.base: joined, member.pixels.tobytes(): joined}
    by_identity = {id(group): group for group in group_of.values()}
    return [sorted(group, key=lambda one: one.codes) for group in by_identity.values()]


if __name__ == "__main__":
    run_script(main)
