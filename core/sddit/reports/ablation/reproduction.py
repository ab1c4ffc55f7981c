"""Compare a rerun with the published results of the same ablation: same digits, within the error bars, different, or
not comparable.

The runs of one arm are compared by Welch's t over seeds, and all figures of all arms are corrected together (Holm): at
most one in twenty faithful reruns is called different anywhere. No torch.
"""

from __future__ import annotations

import math
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
from sddit.formatting import slug
from sddit.recipes.differences import differences
from sddit.recipes.merge import leaves
from sddit.recipes.parsing import quoted
from sddit.reports.ablation.caveats import SAME_EVERYWHERE, group
from sddit.reports.rendering import sentence
from sddit.storage.output_folder import MANIFEST
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
"""The folders of an absolute path inside a text, up to its last name. `1 /0.3`, `</i>` and `/x` alone have none."""
WHOLE = re.compile(r"~[^/\s]*/|/")
"""Start of a setting that is an absolute path as a whole."""
MAX_KEYS = 4  # different settings that a sentence names
SAME = 1e-9  # relative: equal images give distances whose last digits depend on the processor's matrix routines

Word = Literal["identical", "agrees", "different", "no verdict under 3 seeds"]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Agreement:
    """One metric of one arm, published and here."""

    arm: str
    metric: str
    published: Summary
    here: Summary
    compared_runs: int  # runs whose seed is on both sides
    identical: int  # those with the same digits
    close: bool  # whether all of them are equal to nine digits
    low: float | None  # Welch interval of here - published, of this figure alone
    high: float | None
    p: float | None  # None under 3 seeds on a side
    p_holm: float | None = None
    word: Word = "no verdict under 3 seeds"


@dataclass(frozen=True, slots=True)
class Reproduction:
    """A rerun compared with a publication."""

    place: str  # folder of the publication
    agreements: tuple[Agreement, ...]
    not_compared: tuple[tuple[str, str], ...]  # (what, why)
    notes: tuple[str, ...]  # on other differences

    @property
    def words(self) -> list[str]:
        """The outcome in a sentence or two."""
        words = [one.word for one in self.agreements]
        named = [f"{one.arm} on {metric_title(one.metric)}" for one in self.agreements if one.word == "different"]
        outcome = sentence(
            "reproduction",
            place=self.place,
            figures=len(words),
            identical=words.count("identical"),
            agrees=words.count("agrees"),
            different=len(named),
            undecided=words.count("no verdict under 3 seeds"),
        )
        return [outcome, *([f"Different: {', '.join(named)}."] if named else [])]


def against_published(results: AblationResults) -> Reproduction | None:
    """Compare the results with those in the folder of `[ablation] published`; None without such a folder."""
    place = results.folder / results.plan.published
    if not results.plan.published or not any((place / name).is_file() for name in (PLAN, RESULTS, MANIFEST)):
        return None
    name = f"{place.resolve().parent.name}/{place.resolve().name}"
    try:
        return compared(results, gather(place), name)
    except (SdditError, OSError, ValueError, TypeError, LookupError, AttributeError) as fault:
        why = "the files there cannot be read"
        if isinstance(fault, SdditError):
            first = fault.problems[0]
            why = f"{why}: {first.what} ({first.got}) [{first.code}]; {first.fix}"
        return Reproduction(name, (), (("all", why),), ())


def compared(here: AblationResults, there: AblationResults, name: str) -> Reproduction:
    """Compare a rerun (here) with a publication (there)."""
    agreements: list[Agreement] = []
    not_compared: list[tuple[str, str]] = []  # (why, what)
    arms = {arm.label for arm in there.plan.arms}
    for arm in here.plan.arms:
        label = arm.label
        if why := "it is not published" if label not in arms else other_settings(here, there, label):
            not_compared.append((why, label))
            continue
        for metric in here.plan.metrics:
            published, own = there.figure(label, metric), here.figure(label, metric)
            if published and own:
                agreements.append(agreement(label, metric, published, own))
            else:
                why = "not published" if own else "no run here has it"
                not_compared.append((why, f"{label}, {metric_title(metric)}"))
    reasons = tuple((", ".join(names), why) for why, names in group(not_compared).items())
    return Reproduction(name, tuple(corrected(agreements)), reasons, tuple(notes(here, there)))


def agreement(arm: str, metric: str, published: Mapping[int, float], here: Mapping[int, float]) -> Agreement:
    """Compare one metric of one arm by seed, without the correction for the others."""
    shared = published.keys() & here.keys()
    before, now = list(published.values()), list(here.values())
    _, low, high, p = welch(now, before) if min(len(before), len(now)) >= MIN_SEEDS else (None,) * 4
    return Agreement(
        arm,
        metric,
        summarize(before),
        summarize(now),
        compared_runs=len(shared),
        identical=sum(published[seed] == here[seed] for seed in shared),
        close=bool(shared) and all(math.isclose(published[seed], here[seed], rel_tol=SAME) for seed in shared),
        low=low,
        high=high,
        p=p,
    )


def corrected(agreements: Sequence[Agreement]) -> Iterator[Agreement]:
    """Yield each agreement with its word, after a correction of p for all of them."""
    tested = [one.p for one in agreements if one.p is not None]
    values = iter(holm(tested).tolist() if tested else [])
    for one in agreements:
        p_holm = next(values) if one.p is not None else None
        word: Word = "no verdict under 3 seeds"
        if one.identical == one.compared_runs == min(one.published.seeds, one.here.seeds):
            word = "identical"
        elif one.close and one.compared_runs == min(one.published.seeds, one.here.seeds):
            word = "agrees"
        elif p_holm is not None:
            word = "different" if p_holm < 1 - LEVEL else "agrees"
        yield replace(one, p_holm=p_holm, word=word)


def other_settings(here: AblationResults, there: AblationResults, arm: str) -> str:
    """Return why the runs of an arm differ from the published ones; empty if only their seeds differ."""
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
        for key, old, new, kind in differences(before, shorten_setting(recipe))
        if kind != "free" and key != "seed" and (key in known or isinstance(new, Mapping))
    ]  # a key that was unknown then is of a later version, whose default keeps the earlier behaviour
    more = f", and {len(found) - MAX_KEYS} more" if len(found) > MAX_KEYS else ""
    return f"other settings: {'; '.join(found[:MAX_KEYS])}{more}" if found else ""


def first_recipe(folder: Path, rows: Sequence[RunOutcome]) -> Any:
    """Return the resolved recipe of the first run that has one."""
    paths = (folder / row.folder / RECIPE for row in rows)
    return next((read_json(path) for path in paths if path.is_file()), None)


def notes(here: AblationResults, there: AblationResults) -> Iterator[str]:
    """Yield the differences in seeds, versions and machine, which may change digits."""
    own, published = (", ".join(map(str, one.plan.seeds)) for one in (here, there))
    if own != published:
        yield f"Seeds: {own} here; {published} there."
    path = there.folder / ENVIRONMENT
    known: Mapping[str, list[str]] = read_json(path) if path.is_file() else {}
    for key, values in environments(here).items():
        if key.startswith(SAME_EVERYWHERE) and key in known and known[key] != values:
            yield f"{key} is {', '.join(values)} here, {', '.join(known[key])} there, so digits may differ."


def shorten_paths(text: str) -> str:
    """Return a text in which every absolute path is shortened to its last name."""
    return ABSOLUTE.sub("", text)


def shorten_setting(value: T) -> T:
    """Return a setting with its absolute paths, also inside lists and tables, shortened to their last name."""
    cut: Any = value
    if isinstance(value, str):
        cut = value.rstrip("/").rpartition("/")[2] if WHOLE.match(value) else shorten_paths(value)
    elif isinstance(value, Mapping):
        cut = {key: shorten_setting(item) for key, item in value.items()}
    elif isinstance(value, list | tuple):
        cut = [shorten_setting(item) for item in value]
    result: T = cut
    return result
