"""Compare a rerun with what was published of the same ablation: the same digits, within the error bars, different, or
not comparable.

The runs of one arm are compared by Welch's t over seeds, and all figures of all arms are corrected together (Holm): of
faithful reruns, at most one in twenty is called different anywhere. No torch.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

from sddit.ablations.analysis.diagnostics import environments
from sddit.ablations.analysis.results import RESULTS, AblationResults, RunOutcome, gather
from sddit.ablations.analysis.statistics import LEVEL, MIN_SEEDS, Summary, holm, summarize, welch
from sddit.ablations.analysis.table import metric_title
from sddit.ablations.planning.records import PLAN
from sddit.errors import SdditError
from sddit.formatting import format_count, slug
from sddit.recipes.differences import differences
from sddit.recipes.merge import leaves
from sddit.recipes.parsing import quoted
from sddit.reports.ablation.caveats import SAME_EVERYWHERE
from sddit.storage.run_folder import ENVIRONMENT, RECIPE, read_json

RECIPES = "recipes"
NAME = r"""[^\s/'",;:()\[\]<>|`]"""
ABSOLUTE = re.compile(
    rf"""
    (?: (?<=://)/? | (?<![\w./~<%)\]}}]) )   # after file://; not inside a word, a relative path, a web address or a tag
    (?: ~(?:[^\W\d]{NAME}+)?/+ | /\.?(?:[^\W\d]|\d+[^\W\d]{{2}}){NAME}*/+ )   # home or a folder that is not a number
    (?:{NAME}+/+)*
    (?={NAME})
    """,
    re.VERBOSE,
)
"""The folders of an absolute path inside a text, up to its last name: of `1 /0.3`, `</i>` and `/x` alone, nothing is
one.
"""
WHOLE = re.compile(r"~[^/\s]*/|/")
"""How a setting begins that is taken for an absolute path as a whole."""
MAX_KEYS = 4  # that are named where settings differ

Word = Literal["identical", "agrees", "different", "no verdict under 3 seeds"]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Agreement:
    """One metric of one arm, published and here."""

    arm: str
    metric: str
    published: Summary
    here: Summary
    compared_runs: int  # runs of a seed on both sides
    identical: int  # of them with the same digits
    low: float | None  # Welch interval of here - published, of this figure alone
    high: float | None
    p: float | None  # None under 3 seeds on a side
    p_holm: float | None = None
    word: Word = "no verdict under 3 seeds"


@dataclass(frozen=True, slots=True)
class Reproduction:
    """A rerun compared with a publication."""

    place: str  # the publication, by its folder
    agreements: tuple[Agreement, ...]
    apart: tuple[tuple[str, str], ...]  # (what cannot be compared, why)
    notes: tuple[str, ...]  # what else is not the same

    @property
    def words(self) -> list[str]:
        """The outcome in a sentence or two."""
        counts = {word: [one for one in self.agreements if one.word == word] for word in ("identical", "agrees")}
        different = [one for one in self.agreements if one.word == "different"]
        if not self.agreements:
            return [f"Nothing here can be compared with what is published in {self.place}."]
        said = (
            f"Of {format_count(len(self.agreements), 'figure')} (each metric of each arm) published in {self.place}, "
            f"{len(counts['identical'])} came out with the same digits and {len(counts['agrees'])} more within "
            f"the error bars; "
            f"{len(different)} {'is' if len(different) == 1 else 'are'} different."
        )
        named = [f"{one.arm} on {metric_title(one.metric)}" for one in different]
        return [said, *([f"Different: {', '.join(named)}."] if named else [])]


def against_published(results: AblationResults) -> Reproduction | None:
    """Compare the results with those that `[ablation] published` names; None where it names no folder that is there."""
    place = results.folder / results.plan.published
    if not results.plan.published or not ((place / PLAN).is_file() and (place / RESULTS).is_file()):
        return None
    name = f"{place.resolve().parent.name}/{place.resolve().name}"
    try:
        return compared(results, gather(place), name)
    except (SdditError, OSError, ValueError, TypeError, LookupError, AttributeError):
        return Reproduction(name, (), (("all", "the files there cannot be read"),), ())


def compared(here: AblationResults, there: AblationResults, name: str) -> Reproduction:
    """Compare a rerun (here) with a publication (there)."""
    agreements, apart = [], []
    arms = {arm.label for arm in there.plan.arms}
    for arm in here.plan.arms:
        label = arm.label
        if why := "it is not published" if label not in arms else other_settings(here, there, label):
            apart.append((label, why))
            continue
        for metric in here.plan.metrics:
            published, own = there.figure(label, metric), here.figure(label, metric)
            if published and own:
                agreements.append(agreement(label, metric, published, own))
            else:
                apart.append((f"{label}, {metric_title(metric)}", "not published" if own else "no run here has it"))
    return Reproduction(name, tuple(corrected(agreements)), tuple(grouped(apart)), tuple(notes(here, there)))


def agreement(arm: str, metric: str, published: Mapping[int, float], here: Mapping[int, float]) -> Agreement:
    """Return one figure by seed on both sides; the word follows once all are known."""
    shared = published.keys() & here.keys()
    low = high = p = None
    if min(len(published), len(here)) >= MIN_SEEDS:
        _, low, high, p = welch(list(here.values()), list(published.values()))
    return Agreement(
        arm,
        metric,
        summarize(list(published.values())),
        summarize(list(here.values())),
        compared_runs=len(shared),
        identical=sum(published[seed] == here[seed] for seed in shared),
        low=low,
        high=high,
        p=p,
    )


def corrected(agreements: Sequence[Agreement]) -> Iterator[Agreement]:
    """Yield each with its p corrected for all of them, and with its word."""
    tested = [one.p for one in agreements if one.p is not None]
    values = iter(holm(tested).tolist() if tested else [])
    for one in agreements:
        p_holm = next(values) if one.p is not None else None
        yield replace(one, p_holm=p_holm, word=word(one, p_holm))


def word(one: Agreement, p_holm: float | None) -> Word:
    """Runs of the same seeds with the same digits need no statistics."""
    if one.identical == one.compared_runs == min(one.published.seeds, one.here.seeds):
        return "identical"
    if p_holm is None:
        return "no verdict under 3 seeds"
    return "different" if p_holm < 1 - LEVEL else "agrees"


def other_settings(here: AblationResults, there: AblationResults, arm: str) -> str:
    """Why the runs of an arm are other runs than the published ones; empty if they are the same but for their seeds."""
    ids = {row.seed: row.id for row in there.of(arm)}
    rows = here.of(arm)
    if any(row.id == ids.get(row.seed) for row in rows):  # the hash of all that changes a number
        return ""
    recipe, published = first_recipe(here.folder, rows), there.folder / RECIPES / f"{slug(arm)}.json"
    if recipe is None or not published.is_file():
        return "its recipe is not available"
    before = read_json(published)
    known = dict(leaves(before))
    found = [
        f"{key} is {quoted(new)} here, {quoted(old)} there"
        for key, old, new, kind in differences(before, pathless(recipe))
        if kind != "free" and key != "seed" and (key in known or isinstance(new, Mapping))
    ]  # a key that was unknown then is of a later version, and its default is what was done before
    more = f", and {len(found) - MAX_KEYS} more" if len(found) > MAX_KEYS else ""
    return f"other settings: {'; '.join(found[:MAX_KEYS])}{more}" if found else ""


def first_recipe(folder: Path, rows: Sequence[RunOutcome]) -> Any:
    """Return the resolved recipe of the first run that has one."""
    paths = (folder / row.folder / RECIPE for row in rows)
    return next((read_json(path) for path in paths if path.is_file()), None)


def grouped(apart: Sequence[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """Yield those of one reason together."""
    reasons: dict[str, list[str]] = {}
    for what, why in apart:
        reasons.setdefault(why, []).append(what)
    for why, names in reasons.items():
        yield ", ".join(names), why


def notes(here: AblationResults, there: AblationResults) -> Iterator[str]:
    """Other seeds, other versions, other machine: what may move digits, and no setting."""
    own, published = (", ".join(map(str, one.plan.seeds)) for one in (here, there))
    if own != published:
        yield f"Seeds {own} here, {published} there."
    path = there.folder / ENVIRONMENT
    known: Mapping[str, list[str]] = read_json(path) if path.is_file() else {}
    for key, values in environments(here).items():
        if key.startswith(SAME_EVERYWHERE) and key in known and known[key] != values:
            yield f"{key} is {', '.join(values)} here, {', '.join(known[key])} there: other digits may come of it."


def without_paths(text: str) -> str:
    """Return a text in which every absolute path is cut to its last name, and nothing else is touched."""
    return ABSOLUTE.sub("", text)


def pathless(value: T) -> T:
    """Return a setting whose absolute paths, also inside lists and tables, are replaced by their last name."""
    cut: Any = value
    if isinstance(value, str):
        cut = value.rstrip("/").rpartition("/")[2] if WHOLE.match(value) else without_paths(value)
    elif isinstance(value, Mapping):
        cut = {key: pathless(item) for key, item in value.items()}
    elif isinstance(value, list | tuple):
        cut = [pathless(item) for item in value]
    result: T = cut
    return result
