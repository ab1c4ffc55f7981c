#!/usr/bin/env python3
"""Flip a bit in, and cut short, every file of a run folder and of an exported one, and read the folder as commands do.

    python tools/fuzz_files.py RUN                  some bits and cuts of each file, in a copy of the folder
    python tools/fuzz_files.py RUN --each 200       more of them

Each damage must be refused with a code, noticed and worked around (an older checkpoint), or have no effect on weights,
settings and what a resumed run continues from. The last line is the figures as JSON; exit status 0: no silent
change and no traceback.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import random
import shutil
import sys
import tempfile
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

import sddit
from sddit.cli.app import call
from sddit.cli.failures import BUG
from sddit.errors import SdditError
from sddit.exchange.exporting import export_run
from sddit.progress import Progress
from sddit.recipes.recipe import Recipe
from sddit.recipes.resolve import resolve
from sddit.runs.pipeline import run
from sddit.storage.checkpoints import Store
from sddit.storage.run_folder import RECIPE, REPORT
from sddit.storage.tensors import pack
from sddit.training.build import build_session
from sddit.training.state import checkpoint_files, restore

Verdict = Literal["caught", "no effect", "silent", "traceback"]


@dataclass(frozen=True, slots=True)
class Damage:
    """One bit of a file flipped, or the file cut short."""

    kind: Literal["flip", "cut"]
    at: int  # the bit, or the bytes that are left

    def of(self, data: bytes) -> bytes:
        """Return the damaged bytes."""
        if self.kind == "cut":
            return data[: self.at]
        changed = bytearray(data)
        changed[self.at // 8] ^= 1 << self.at % 8
        return bytes(changed)


def damages(size: int, each: int, chance: random.Random) -> Iterator[Damage]:
    """Yield damages of a file of `size` bytes: flips of its first, middle, last and random bits, and truncations."""
    if size == 0:
        return
    bits = [0, 4 * size, 8 * size - 1, *(chance.randrange(8 * size) for _ in range(each - 3))]
    yield from (Damage("flip", bit) for bit in dict.fromkeys(bits))
    cuts = [0, size - 1, *(chance.randrange(size) for _ in range(each // 4))]
    yield from (Damage("cut", cut) for cut in dict.fromkeys(cuts))


@dataclass(frozen=True, slots=True)
class Read:
    """Result of a reader: what must not change silently, and what it reported."""

    found: str
    said: Sequence[str] = ()


Reader = Callable[[Path], Read]
"""Reads a folder. Raises SdditError where it refuses."""


def as_a_model(folder: Path) -> Read:
    """Read weights and settings with `sddit.load`."""
    model = sddit.load(folder)
    recipe = json.dumps(model.require_recipe().to_json(), sort_keys=True)
    weights = pack(model.backbone.state_dict())
    return Read(digest(weights, recipe.encode()))


def as_a_checkpoint(recipe: Recipe) -> Reader:
    """Return a reader of what a resumed run of `recipe` continues from: its newest intact checkpoint."""

    def read(folder: Path) -> Read:
        store = Store(folder / "checkpoints", keep=2)
        checkpoint = store.latest(move_broken=False)
        if checkpoint is None:
            return Read("none")
        session = build_session(recipe, torch.device("cpu"))
        state = restore(session, checkpoint)
        files = checkpoint_files(session, {"log_cursor": state["log_cursor"]})
        written = [content if isinstance(content, bytes) else content.make() for content in files.values()]
        return Read(digest(*written), store.notices)

    return read


def as_one_of_all(folder: Path) -> Read:
    """Read every checkpoint, not only the newest."""
    store = Store(folder / "checkpoints", keep=2)
    return Read(" ".join(digest(*map(store.open(step).read, store.open(step).files)) for step in store.steps()))


def digest(*parts: bytes) -> str:
    return hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()


def as_a_command(*words: str) -> Reader:
    """Return a reader that runs a command in which RUN stands for the folder and NEW for a new one.

    Its output is not compared.
    """

    def read(folder: Path) -> Read:
        places = {"RUN": str(folder), "NEW": str(folder.with_name("new"))}
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()) as err:
            status = call([places.get(word, word) for word in words])
        shutil.rmtree(folder.with_name("new"), ignore_errors=True)
        if status == BUG:
            raise RuntimeError(f"{' '.join(words)}: {err.getvalue()[:500]}")
        return Read("")

    return read


def as_a_run(recipe: Recipe) -> Reader:
    """Return a reader that reruns the training command, which writes scores and report again."""

    def read(folder: Path) -> Read:
        (folder / REPORT).unlink(missing_ok=True)
        run(recipe, out=folder.parent, device="cpu", progress=Progress())
        return Read("")

    return read


SAMPLE = ("sample", "RUN", "--per-class", "1", "--classes", "0", "--steps", "2")
TABLES = (("table", "RUN"), ("table", "RUN", "--csv"), ("table", "RUN", "--latex"))


def readers_of_a_run(recipe: Recipe) -> list[Reader]:
    """Return everything that reads a run folder. The last reader also changes it."""
    commands = [as_a_command(*words) for words in (*TABLES, ("export", "RUN", "--out", "NEW"), SAMPLE)]
    return [as_a_model, as_a_checkpoint(recipe), as_one_of_all, *commands, as_a_run(recipe)]


READERS_OF_AN_EXPORT: list[Reader] = [as_a_model, as_a_command(*SAMPLE)]


def judge(
    whole: Path, name: str, damage: Damage, readers: Sequence[Reader], expected: Sequence[str]
) -> tuple[Verdict, str]:
    """Return the verdict on a copy of the folder `whole` in which the file `name` is damaged."""
    caught: list[str] = []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(shutil.copytree(whole, Path(place) / whole.name))
        (folder / name).write_bytes(damage.of((whole / name).read_bytes()))
        for reader, right in zip(readers, expected, strict=True):
            try:
                with warnings.catch_warnings(record=True) as heard:
                    warnings.simplefilter("always")
                    read = reader(folder)
            except SdditError as refused:
                caught.append(refused.problems[0].code)
                continue
            except Exception as bug:
                return "traceback", f"{type(bug).__name__}: {bug}"
            said = [*read.said, *(str(warning.message) for warning in heard)]
            if read.found != right and not said:
                return "silent", f"{reader.__qualname__} found something else"
            caught += said
    return ("caught", caught[0]) if caught else ("no effect", "")


@dataclass(slots=True)
class Figures:
    """Count verdicts by file."""

    verdicts: dict[str, Counter[Verdict]] = field(default_factory=lambda: defaultdict(Counter))
    misses: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        verdicts: Counter[Verdict] = sum(self.verdicts.values(), Counter())
        by_file = {name: dict(counts) for name, counts in self.verdicts.items()}
        return {"damages": sum(verdicts.values()), "verdicts": dict(verdicts), "by file": by_file}


def fuzz(folder: Path, readers: Sequence[Reader], each: int, chance: random.Random, most: int | None = None) -> Figures:
    """Damage every file of a folder in turn; `most` is the total number of damages, chosen at random."""
    figures = Figures()
    names = [str(path.relative_to(folder)) for path in sorted(folder.rglob("*")) if path.is_file()]
    with tempfile.TemporaryDirectory() as place:
        copy = Path(shutil.copytree(folder, Path(place) / folder.name))
        expected = [reader(copy).found for reader in readers]
    cases = [(name, damage) for name in names for damage in damages((folder / name).stat().st_size, each, chance)]
    for name, damage in cases if most is None else chance.sample(cases, most):
        verdict, why = judge(folder, name, damage, readers, expected)
        figures.verdicts[name][verdict] += 1
        if verdict in ("silent", "traceback"):
            figures.misses.append(f"{verdict}: {name}, {damage.kind} at {damage.at}: {why}")
    return figures


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a finished run folder; it is copied")
    parser.add_argument("--each", type=int, default=12, metavar="N", help="bits to flip in each file")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    chance = random.Random(given.seed)
    recipe = resolve(given.run / RECIPE)
    with tempfile.TemporaryDirectory() as place:
        exported = export_run(given.run, out=Path(place) / "exported").folder
        found = {
            "run folder": fuzz(given.run.resolve(), readers_of_a_run(recipe), given.each, chance),
            "exported folder": fuzz(exported, READERS_OF_AN_EXPORT, given.each, chance),
        }
    misses = [miss for figures in found.values() for miss in figures.misses]
    print(*misses, sep="\n", file=sys.stderr)
    print(json.dumps({name: figures.to_json() for name, figures in found.items()}))
    return 1 if misses else 0


if __name__ == "__main__":
    sys.exit(main())
