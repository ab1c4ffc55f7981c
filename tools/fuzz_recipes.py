#!/usr/bin/env python3
"""Corrupt every key of every shipped recipe in every small way: each mutant must be refused, naming the key.

    python tools/fuzz_recipes.py                  all mutants: some minutes on one core
    python tools/fuzz_recipes.py --most 500       this many, chosen by --seed
    python tools/fuzz_recipes.py --bytes 20000    change random bytes of recipes instead: there must be no traceback

A key is misspelt by one edit, set to a value of a wrong type or out of bounds, or moved to another table. The last line
holds the figures as JSON; exit status 0: every mutant was refused before the first step by a message that names the
key, and nothing else was raised.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin

from annotated_types import Ge, Gt, Interval, Le, Lt
from pydantic import AfterValidator, BaseModel
from pydantic.fields import FieldInfo

from sddit.ablations.planning.ablation_settings import AblationSettings
from sddit.ablations.planning.arms import expand, is_ablation
from sddit.errors import SdditError
from sddit.plugins.host import host
from sddit.recipes.field_types import field_at, keys
from sddit.recipes.merge import Merged, chain, load
from sddit.recipes.parsing import Source, scan, shown
from sddit.recipes.recipe import Recipe
from sddit.recipes.resolve import TABLES, resolve_merged
from sddit.recipes.search import shipped
from sddit.recipes.settings import SETTINGS, EmaSettings
from sddit.value_schedules import Between

ELSEWHERE = (
    "dataset.name=declared",
    "dataset.image=[4, 32, 32]",
    "dataset.classes=1000",
    "dataset.label_drop=0.1",
    "codec=false",
)
"""A stand-in for the latents of ImageNet, which are not shipped."""
ENCODED = ("codec=false",)  # its latents are not made
OWN = ("dataset.name=declared", "dataset.image=[3, 64, 64]", "dataset.classes=10", "evaluate.features=[]")
"""A stand-in for the user's own images."""
UNSCORED = ("evaluate.features=[]", "ablation.metrics=[]")
LETTERS = "abcdefghijklmnopqrstuvwxyz_"


@dataclass(frozen=True, slots=True)
class Reader:
    """A shipped recipe, with stand-ins for data and runs that are not shipped."""

    path: Path
    overrides: tuple[str, ...]

    def merged(self) -> Merged:
        return load(self.path, self.overrides)

    def check(self) -> Recipe:
        """Do what every command does before the first step, for an ablation for all arms."""
        merged = self.merged()
        return expand(merged).base if is_ablation(merged) else resolve_merged(merged)


@dataclass(frozen=True, slots=True)
class Key:
    """A key or a table header of a recipe file."""

    file: Path
    line: int  # counted from 1
    dotted: str  # from the top
    written: str  # the part of it that is misspelt, as it stands in the line
    known: tuple[str, ...]  # what may stand in its place
    reader: Reader  # a recipe in which this line counts
    info: FieldInfo | None = None  # what its value may be, where that is known
    homes: tuple[str, ...] = ()  # tables that have no key of this name
    is_header: bool = False


def readers(recipes: Path) -> list[Reader]:
    """Return every recipe that is run, excluding those that are only extended."""
    paths = sorted(
        recipes.rglob("*.toml"), key=lambda path: ("ablations" in path.parts, path)
    )  # one recipe is checked faster
    return [Reader(path, stand_ins(path)) for path in paths if path.parent.name != "base"]


def stand_ins(recipe: Path) -> tuple[str, ...]:
    tables = load(recipe).tables
    second_stage = tuple(f"{table}=false" for table in ("start", "snapshot") if table in tables)
    unscored = UNSCORED if "ablations" in recipe.parts else ()
    own = OWN if recipe.name == "folder.toml" else ENCODED if recipe.name == "emoji-latent.toml" else ()
    return own + second_stage + (ELSEWHERE + unscored if recipe.parent.name == "imagenet256" else ())


def every_key(recipes: Path) -> list[Key]:
    """Return the keys and headers of every recipe file in a folder, each with a recipe in which it has an effect."""
    found: dict[tuple[Path, int, str], Key] = {}
    for reader in readers(recipes):
        recipe = reader.check()
        for bare in (reader, replace(reader, overrides=())):  # what a stand-in replaces counts only without it
            merged = bare.merged()
            models = tables_of(recipe, merged)
            for source in chain(reader.path):
                for key in keys_in(source, bare, models):
                    if counts(key, merged):
                        homes = tuple(home for home in key.homes if stays(home, key.file, merged))
                        found.setdefault((key.file.resolve(), key.line, key.dotted), replace(key, homes=homes))
    return list(found.values())


def counts(key: Key, merged: Merged) -> bool:
    """Return whether the line says something in this recipe: no later layer replaced it, or all that is under the
    header.
    """
    if key.dotted in ("extends", "plugins"):
        return True
    if key.is_header:
        below = (origin for inner, origin in merged.origins.items() if f"{inner}.".startswith(f"{key.dotted}."))
        return any(origin.place.startswith(f"{shown(key.file)}:") for origin in below)
    origin = merged.origins.get(key.dotted)
    return origin is not None and origin.place == f"{shown(key.file)}:{key.line}"


def tables_of(recipe: Recipe, merged: Merged) -> dict[str, type[BaseModel]]:
    """Return the settings of each table of a recipe."""
    slots = ("backbone", "noise_schedule", "pair_sampler", "attention", "dataset", "sampler", "guidance", "optimizer")
    models: dict[str, type[BaseModel]] = {slot: type(getattr(recipe, slot).params) for slot in slots}
    for table, labelled in (("loss", recipe.losses), ("tracker", recipe.trackers)):
        models |= {f"{table}.{label}": type(chosen.params) for label, chosen in labelled.items()}
    models["dataset"] = host().registries.datasets.usable(merged.tables["dataset"]["name"]).params  # not its stand-in's
    models |= {f"ema.{label}": EmaSettings for label in recipe.ema}
    models |= {table: model for table, model in SETTINGS.items() if table != "ema"}
    return models | ({"ablation": AblationSettings} if is_ablation(merged) else {})


LABEL = re.compile(r"(^|\.)(loss|tracker)\.[^.]+$")


def keys_in(source: Source, reader: Reader, models: Mapping[str, type[BaseModel]]) -> Iterator[Key]:
    """Return the table headers and keys of one file, with keys inside { }."""
    lines = source.path.read_text(encoding="utf-8").split("\n")
    for entry in scan("\n".join(lines)):
        line = lines[entry.line - 1]
        top = entry.key.partition(".")[0]
        if entry.kind != "value":
            yield Key(source.path, entry.line, entry.key, top, TABLES, reader, is_header=True)
            continue
        key = Key(source.path, entry.line, entry.key, entry.key.rpartition(".")[2], (), reader)
        inside = re.findall(r"[{,]\s*(\w+)\s*=", line)
        if not (LABEL.search(entry.key) and "name" in inside):  # what names a component may have any label
            yield with_face(key, models)
        for inner in inside:
            yield with_face(replace(key, dotted=f"{entry.key}.{inner}", written=inner), models)


def with_face(key: Key, models: Mapping[str, type[BaseModel]]) -> Key:
    """Return the key with the names that its table allows.

    An arm's keys are those of the recipe; of a grid only the names are known.
    """
    dotted = re.sub(r"^ablation\.(arms\.[^.]+|grid|pairs)\.", "", key.dotted)
    table = max((t for t in models if dotted.startswith(f"{t}.")), key=len, default="")
    if not table:
        return replace(key, known=TABLES)
    model, path = models[table], dotted.removeprefix(f"{table}.").split(".")
    around = field_at(model, path[:-1])
    known = tuple(keys(model)) if around is None else tuple(SCHEDULE)
    info = field_at(model, path) if key.dotted.partition(".")[0] != "ablation" or table == "ablation" else None
    homes = tuple(t for t, other in models.items() if t != table and len(path) == 1 and path[0] not in keys(other))
    return replace(key, known=(*known, "name"), info=info, homes=homes if path[0] != "name" else ())


def stays(home: str, file: Path, merged: Merged) -> bool:
    """Return whether a file's entries in a table survive: no later layer names another component for it."""
    if home in SETTINGS or home.startswith("ema."):
        return home != "start" or "start" in merged.tables
    origin = merged.origins.get(f"{home}.name")
    return origin is not None and origin.place.startswith(f"{shown(file)}:")


SCHEDULE = ("start", "end", "shape", "power", "from", "until", "depth", "width", "heads")
"""The keys of the tables inside a table: a value schedule, a decoder."""


@dataclass(frozen=True, slots=True)
class Mutant:
    """A recipe file with one line changed."""

    kind: str
    key: Key
    text: str  # of the whole file
    named: str  # what the message must name


def mutants(key: Key, chance: random.Random) -> Iterator[Mutant]:
    """Yield every corruption of one key; `chance` draws the inserted letters."""
    lines = key.file.read_text(encoding="utf-8").split("\n")
    line = lines[key.line - 1]

    def corrupted(kind: str, changed: str, named: str, extra: str = "") -> Mutant:
        text = "\n".join([*lines[: key.line - 1], changed, *lines[key.line :], extra])
        return Mutant(kind, key, text, named)

    spot = re.search(rf"(?<![\w-]){re.escape(key.written)}(?=\s*[=.\]])", line)
    assert spot is not None, (key.file, line)
    for wrong in sorted(misspellings(key.written, chance) - {*key.known, *TABLES}):
        yield corrupted("misspelt", f"{line[: spot.start()]}{wrong}{line[spot.end() :]}", wrong)
    if key.info is None or "{" in line:
        return
    before = line[: spot.end()]
    for kind, values in (("wrong kind", wrong_kinds(key.info)), ("out of bounds", beyond(key.info))):
        for value in values:
            yield corrupted(kind, f"{before} = {value}", key.written)
    for home in key.homes:
        moved = line[spot.start() :].partition("#")[0]
        yield (
            corrupted("wrong table", "", key.written, f"[{home}]\n{moved}")
            if f"[{home}]" not in lines
            else Mutant("wrong table", key, into(lines, key.line, f"[{home}]", moved), key.written)
        )


def into(lines: Sequence[str], taken: int, header: str, moved: str) -> str:
    """Return the text with line `taken` moved to below a header."""
    kept = [*lines[: taken - 1], "", *lines[taken:]]
    place = kept.index(header) + 1
    return "\n".join([*kept[:place], moved, *kept[place:]])


def misspellings(word: str, chance: random.Random) -> set[str]:
    """Yield the text with each letter removed, each two neighbours swapped, and a letter inserted or changed at each
    position.
    """
    places = range(len(word))
    found = {word[:i] + word[i + 1 :] for i in places}
    found |= {word[:i] + word[i + 1] + word[i] + word[i + 2 :] for i in places[:-1]}
    found |= {word[:i] + chance.choice(LETTERS) + word[i + 1 :] for i in places}
    found |= {word[:i] + chance.choice(LETTERS) + word[i:] for i in range(len(word) + 1)}
    return found - {word, ""}


EXAMPLES = {bool: "true", int: "7", float: "10.5", str: '"twelve"', list: "[true]", dict: "{ zz = 1 }"}
EXAMPLES_BEYOND_NUMBERS = ("nan", "inf", "-inf", "1e400", "9223372036854775808", "1" + "0" * 400)


def wrong_kinds(info: FieldInfo) -> list[str]:
    """Return a value of every TOML type that a field does not take."""
    taken = kinds(info.annotation)
    if float in taken:
        taken |= {int}
    return [text for kind, text in EXAMPLES.items() if kind not in taken] + ["1979-05-27", "07:32:00"]


def kinds(annotation: Any) -> set[type]:
    """Return the TOML types that a Python type accepts."""
    origin, inside = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return kinds(inside[0])
    if origin is Literal:
        return {type(choice) for choice in inside}
    if origin in (tuple, list):
        return {list}
    if origin is dict:
        return {dict}
    if inside:  # a union
        return set().union(*(kinds(one) for one in inside))
    if annotation is NoneType or (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
        return set()  # a table of settings refuses `zz`
    return {annotation}


def beyond(info: FieldInfo) -> list[str]:
    """Return numbers just outside a field's bounds, far outside, and those that no field takes."""
    if not kinds(info.annotation) & {int, float}:
        return []
    whole = float not in kinds(info.annotation)
    step = 1 if whole else 1e-6
    just = [edge + sign * step for edge, sign in edges([*info.metadata, *inner_metadata(info.annotation)])]
    far = [sign * 10**12 * (1 if whole else 1.0) for _, sign in edges(info.metadata)]
    return [repr(value) for value in (*just, *far)] + list(EXAMPLES_BEYOND_NUMBERS)


def inner_metadata(annotation: Any) -> list[Any]:
    """Return the constraints inside `Annotated[...] | None`."""
    if get_origin(annotation) is Annotated:
        return list(annotation.__metadata__)
    return [note for one in get_args(annotation) if get_origin(annotation) is not tuple for note in inner_metadata(one)]


def edges(metadata: Iterable[Any]) -> Iterator[tuple[float, int]]:
    """Yield each bound with the direction in which it is crossed."""
    for note in metadata:
        match note:
            case FieldInfo():
                yield from edges(note.metadata)
            case Interval():
                yield from edges(iter(note))
            case Ge(ge=low):
                yield low, -1  # type: ignore[misc]
            case Gt(gt=low):
                yield low, -1  # type: ignore[misc]
            case Le(le=high):
                yield high, 1  # type: ignore[misc]
            case Lt(lt=high):
                yield high, 1  # type: ignore[misc]
            case AfterValidator(func=Between() as between):
                yield between.low, -1
                if between.high < float("inf"):
                    yield between.high, 1


Verdict = Literal["refused", "not named", "accepted", "traceback"]


@dataclass(slots=True)
class Tally:
    """Count the results of the mutants."""

    verdicts: Counter[tuple[str, Verdict]] = field(default_factory=Counter)  # by kind
    with_line: int = 0  # messages that name file and line
    milliseconds: list[float] = field(default_factory=list)
    misses: list[str] = field(default_factory=list)  # mutants that were not refused by name

    def note(self, mutant: Mutant, verdict: Verdict, said: str, seconds: float) -> None:
        self.verdicts[mutant.kind, verdict] += 1
        self.with_line += f"{mutant.key.file.name}:" in said
        self.milliseconds.append(1000 * seconds)
        if verdict != "refused":
            changed = next((line for line in mutant.text.split("\n") if mutant.named in line), "")
            place = f"{mutant.key.file.name}:{mutant.key.line}"
            self.misses.append(
                f"{verdict}, {mutant.kind}: {place} {mutant.key.dotted}: {changed.strip()}: {said[:300]}"
            )

    def figures(self) -> dict[str, Any]:
        made = sum(self.verdicts.values())
        by_kind: dict[str, dict[str, int]] = {}
        for (kind, verdict), count in sorted(self.verdicts.items()):
            by_kind.setdefault(kind, {})[verdict] = count
        slow = sorted(self.milliseconds)
        return {
            "mutants": made,
            "refused by name": sum(count for (_, verdict), count in self.verdicts.items() if verdict == "refused"),
            "tracebacks": sum(count for (_, verdict), count in self.verdicts.items() if verdict == "traceback"),
            "by kind": by_kind,
            "with file and line": round(self.with_line / made, 4),
            "ms to verdict, median": round(slow[made // 2], 1),
            "ms to verdict, 99 %": round(slow[made * 99 // 100], 1),
        }


def judge(mutant: Mutant) -> tuple[Verdict, str]:
    """Put the mutant in place of its file, check the recipe that reads it, and put the file back."""
    whole = mutant.key.file.read_bytes()
    try:
        mutant.key.file.write_text(mutant.text, encoding="utf-8")
        mutant.key.reader.check()
    except SdditError as refused:
        said = str(refused)
        return ("refused" if mutant.named in said else "not named"), said
    except Exception as bug:
        return "traceback", f"{type(bug).__name__}: {bug}"
    finally:
        mutant.key.file.write_bytes(whole)
    return "accepted", ""


def judged(mutants: Sequence[Mutant], report: Callable[[str], None] = lambda text: None) -> Tally:
    """Check all mutants and return their verdicts; `report` receives the progress."""
    tally = Tally()
    for done, mutant in enumerate(mutants, 1):
        began = time.perf_counter()
        verdict, said = judge(mutant)
        tally.note(mutant, verdict, said, time.perf_counter() - began)
        if done % 1000 == 0:
            report(f"{done} of {len(mutants)} mutants, {len(tally.misses)} missed")
    return tally


PIECES = [
    "",
    '"',
    "'",
    '"""',
    "'''",
    "[",
    "]",
    "[[",
    "{",
    "}",
    "=",
    ".",
    ",",
    "#",
    "\\",
    "\\u",
    "inf",
    "nan",
    "1e999",
    "0x",
    "false",
    "name",
    "extends",
    "\x00",
    "\r",
    "\u202e",
    "",
]
PIECES += ["\n", "9" * 30, "[" * 200, "a." * 100]
"""Insertions of the random edits: TOML syntax, and strings that are difficult for a parser."""


def edited(data: bytes, chance: random.Random) -> bytes:
    """Return a text with one to four random edits: bits, inserted TOML, parts removed, doubled or moved."""
    text = bytearray(data)
    for _ in range(chance.randint(1, 4)):
        start = chance.randrange(len(text) + 1)
        stretch = bytes(text[start : start + chance.randint(1, 40)])
        match chance.randrange(5):
            case 0 if stretch:
                text[start] ^= 1 << chance.randrange(8)
            case 1:
                text[start:start] = chance.choice(PIECES).encode()
            case 2:
                del text[start : start + len(stretch)]
            case 3:
                text[start:start] = stretch
            case _:
                del text[start : start + len(stretch)]
                place = chance.randrange(len(text) + 1)
                text[place:place] = stretch
    return bytes(text)


def corrupt_bytes(
    recipes: Path, cases: int, seed: int, report: Callable[[str], None] = lambda text: None
) -> dict[str, Any]:
    """Edit recipes at random: each is refused with a message or still a recipe, and nothing else is raised."""
    chance, all_readers = random.Random(seed), [r for r in readers(recipes) if "ablations" not in r.path.parts]
    outcomes: Counter[str] = Counter()
    tracebacks = []
    for case in range(cases):
        reader = chance.choice(all_readers)
        whole = reader.path.read_bytes()
        data = edited(whole, chance)
        try:
            reader.path.write_bytes(data)
            reader.check()
            outcomes["still a recipe"] += 1
        except SdditError as refused:
            outcomes[refused.problems[0].code] += 1
        except Exception as bug:
            tracebacks.append(f"{reader.path.name}, {data!r}: {type(bug).__name__}: {bug}")
        finally:
            reader.path.write_bytes(whole)
        if (case + 1) % 1000 == 0:
            report(f"{case + 1} of {cases} texts, {len(tracebacks)} tracebacks")
    return {
        "texts": cases,
        "tracebacks": len(tracebacks),
        "outcomes": dict(outcomes.most_common()),
        "missed": tracebacks,
    }


def sample(recipes: Path, most: int | None, seed: int) -> list[Mutant]:
    """Check the mutants of the recipes in a folder, all or the requested number, in random order."""
    chance = random.Random(seed)
    made = [mutant for key in every_key(recipes) for mutant in mutants(key, chance)]
    chance.shuffle(made)
    return made[:most]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--most", type=int, metavar="N", help="mutants to try; default: all")
    parser.add_argument("--bytes", type=int, metavar="N", help="change random bytes of N texts instead")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()

    def report(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    with tempfile.TemporaryDirectory() as folder:
        recipes = Path(shutil.copytree(shipped(), Path(folder) / "recipes"))
        if given.bytes is not None:
            figures = corrupt_bytes(recipes, given.bytes, given.seed, report)
            misses = figures.pop("missed")
        else:
            tally = judged(sample(recipes, given.most, given.seed), report)
            figures, misses = tally.figures(), tally.misses
    for miss in misses:
        report(miss)
    print(json.dumps(figures))
    return 1 if misses else 0


if __name__ == "__main__":
    sys.exit(main())
