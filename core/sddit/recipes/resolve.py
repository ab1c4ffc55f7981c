"""Resolve a recipe: select its components, check their settings, fill in defaults, and check the slots together.

All problems are collected and raised together, before anything runs. Torch-free.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast, get_args

from sddit.data import seen_std
from sddit.data.declared import declared_table
from sddit.distributed.processes import world_size
from sddit.errors import Problem, SdditError, raise_all
from sddit.interfaces import AttentionParams, DataFacts, Selected
from sddit.plugins.host import Host
from sddit.plugins.host import host as the_host
from sddit.recipes import checks
from sddit.recipes.differences import differences
from sddit.recipes.merge import Merged, Origin, leaves, load, merge_into, of_tables, override
from sddit.recipes.parsing import MAX_INTEGER, quoted
from sddit.recipes.recipe import Recipe
from sddit.recipes.selection import LABELLED, SLOTS, Selector
from sddit.recipes.settings import SETTINGS, EmaSettings, StartSettings
from sddit.recipes.start_weights import complete_start
from sddit.recipes.validation import unknown_key

ABLATION = "ablation"
"""The table of arms. It changes no other key: resolved, an ablation is its recipe without the arms."""

TABLES = ("seed", "plugins", "extends", *SLOTS, *LABELLED, *SETTINGS, ABLATION)
STATED = ("name", "data", "code", "processes")
"""Tables of resolved recipes only: the name, and what the data and the plugins were."""

MEASURED = "measured"
MAX_DIFFERENCE = 0.1
"""Maximum relative difference between sigma_data and the measured value without a warning."""


def resolve(source: str | Path, overrides: Sequence[str] = (), *, host: Host | None = None) -> Recipe:
    """Return a recipe by path or name, with `key=value` overrides, checked and complete.

    Args:
        source: a `.toml` file, a `recipe.resolved.json`, or the name of a recipe in `recipes/` or among the shipped
            ones.
        overrides: such as "train.steps=200".
        host: the plugins to choose from; the process's own by default.

    Raises:
        SdditError: with every problem found, each with its key, file and line, what was got and what is allowed.
    """
    return resolve_merged(load(source, overrides), host=host)


def changed(recipe: Recipe, overrides: Sequence[str], *, host: Host | None = None) -> Recipe:
    """Return a resolved recipe with further overrides, checked again."""
    merged = of_tables(recipe.to_json(), recipe.path, recipe.origins, recipe.plugin_files)
    override(merged, overrides)
    return resolve_merged(merged, host=host)


def resolve_tables(tables: Mapping[str, Any], path: Path | None, *, host: Host | None = None) -> Recipe:
    """Resolve tables of a resolved recipe that are stored inside another file.

    Args:
        tables: keys that are not set take their defaults.
        path: the file that stores them, next to its one-file plugins; None: no file.
    """
    return resolve_merged(of_tables(tables, path), host=host)


def resolve_without_data(source: str | Path, *, host: Host | None = None) -> Recipe:
    """Resolve a `recipe.resolved.json` whose data may be missing.

    Without the data, its data set is `declared`, from what the file states: the recipe samples as before, but cannot
    train or score.
    """
    merged = load(source)
    try:
        return resolve_merged(merged, host=host)
    except SdditError as failure:
        about_data = all(problem.code.startswith("SD-D") for problem in failure.problems)
        if not about_data or "mean" not in merged.tables.get("data", {}):
            raise
    stand_in = {"dataset": declared_table(merged.tables.pop("data"), merged.tables["dataset"])}
    merge_into(merged, {**stand_in, "evaluate": {"features": []}}, Origin("stated by the run", inherited=True))
    return resolve_merged(merged, host=host)


def resolve_merged(merged: Merged, *, host: Host | None = None) -> Recipe:
    """Resolve a recipe whose layers are already merged."""
    selector = Selector(merged, host or the_host())
    selector.add(_unknown_tables(selector), blocks=False)
    slots: dict[str, Any] = selector.slots()
    labelled = {table: selector.labelled(table) for table in LABELLED}
    averages = {label: selector.settings(EmaSettings, t, f"ema.{label}") for label, t in selector.labels("ema").items()}
    tables: dict[str, Any] = {
        key: selector.settings(SETTINGS[key], merged.tables.get(key, {}), key)
        for key in ("train", "teacher", "evaluate")
    }
    features = selector.features(tables["evaluate"].features, labelled["features"]) if tables["evaluate"] else {}
    seed, name, start = _seed(selector), _name(selector), _start(selector)
    facts = _facts(selector, slots)
    if selector.is_blocked:
        raise_all(selector.problems())
    assert facts is not None  # what is missing has left a problem

    std = seen_std(slots["dataset"].params, facts)
    slots["noise_schedule"], measured, warnings = _with_measured(selector, slots["noise_schedule"], std)
    qualified = tuple(
        label if label in labelled["features"] else feature.component.qualified for label, feature in features.items()
    )
    ema = {label: average for label, average in averages.items() if average}
    weights = tables["evaluate"].weights or next(iter(ema), "student")
    tables["evaluate"] = tables["evaluate"].model_copy(update={"features": qualified, "weights": weights})
    recipe = Recipe(
        **slots,
        **tables,
        name=name,
        path=merged.path,
        seed=seed,
        plugins=tuple(dict.fromkeys(plugin.resolved_name for plugin in merged.plugins)),
        losses=labelled["loss"],
        trackers=labelled["tracker"],
        features=features,
        ema=ema,
        facts=facts,
        start=start,
        processes=_processes(merged),
        plugin_digests=selector.used,
        plugin_files={plugin.resolved_name: plugin.path for plugin in merged.plugins if plugin.is_file},
        kernels={
            c.name: cast(AttentionParams, c.params()) for c in selector.host.registries.attention if not c.missing()
        },
    )
    selector.add(_placed(problem, merged) for problem in checks.check(recipe))
    raise_all(selector.problems())
    return _with_notes(recipe, merged, measured, warnings)


def _unknown_tables(selector: Selector) -> Iterator[Problem]:
    merged, registries = selector.merged, selector.host.registries.all()
    params = {**SETTINGS, **{slot: registries[kind].params for slot, kind in SLOTS.items()}}
    for key, value in merged.tables.items():
        if key in TABLES or (merged.resolved and key in STATED):
            continue
        problem = unknown_key(key, f"{key} = {quoted(value)}", TABLES, merged.place(key))
        tables = [f"{table}.{key}" for table, model in params.items() if key in model.model_fields]
        yield replace(problem, fix=f"write {' or '.join(tables)}") if tables else problem


def _seed(selector: Selector) -> int:
    seed = selector.merged.tables.get("seed", 0)
    if isinstance(seed, bool) or not isinstance(seed, int):
        selector.problem("SD-R103", "'seed' is of the wrong kind", "seed", f"seed = {quoted(seed)}", "whole number")
    elif not 0 <= seed <= MAX_INTEGER:
        selector.problem("SD-R107", "the seed is out of range", "seed", f"seed = {seed}", "0 to 2^63 - 1")
    else:
        return seed
    return 0


def _start(selector: Selector) -> StartSettings | None:
    """Return the weights to start from, with checkpoint, label and hash filled in."""
    if "start" not in selector.merged.tables:
        return None
    settings = selector.settings(StartSettings, selector.merged.tables["start"], "start")
    try:
        return settings and complete_start(settings, stated=selector.merged.resolved)
    except SdditError as failure:
        keyed = [p if p.where.startswith("start.") else replace(p, where="start.run") for p in failure.problems]
        selector.add(_placed(problem, selector.merged) for problem in keyed)
    return None


def _name(selector: Selector) -> str:
    """Return the name of the run: the stem of the file, which the resolved form keeps."""
    merged = selector.merged
    stem = merged.path.stem if merged.path else "recipe"
    name = merged.tables.get("name", stem) if merged.resolved else stem
    if not isinstance(name, str) or not re.fullmatch(r"\w[\w. -]*", name):
        expect = "letters, digits, _, - and . in the name of a recipe"
        selector.problem("SD-R103", "the name cannot be that of a run folder", "name", quoted(name), expect)
    return str(name)


def _facts(selector: Selector, chosen: Mapping[str, Selected[Any]]) -> DataFacts | None:
    if "dataset" not in chosen:
        return None
    try:
        facts: DataFacts = chosen["dataset"].params.facts()
        return facts
    except SdditError as failure:
        selector.add(_placed(problem, selector.merged, around="dataset") for problem in failure.problems)
    return None


def _with_measured(
    selector: Selector, schedule: Selected[Any], std: float
) -> tuple[Selected[Any], list[str], list[str]]:
    """Put the data's standard deviation where the recipe says `measured`.

    Returns the schedule, the keys that were measured, and warnings of numbers that differ from the standard deviation.
    """
    std = float(f"{std:.6g}")  # the last bits of a long sum must not change a run id
    values = {
        info.alias or name: getattr(schedule.params, name)
        for name, info in type(schedule.params).model_fields.items()
        if _mentions_measured(info.annotation)
    }
    measured = [key for key, value in values.items() if value == MEASURED]
    warnings = [
        f"noise_schedule.{key} = {value:g} differs from the standard deviation of the data, {std:.4g} "
        f'({selector.merged.place(f"noise_schedule.{key}")}); write {key} = "{MEASURED}"'
        for key, value in values.items()
        if isinstance(value, float) and abs(value - std) > MAX_DIFFERENCE * std
    ]
    table = {**schedule.params.model_dump(mode="json", by_alias=True), **dict.fromkeys(measured, std)}
    params = selector.settings(type(schedule.params), table, "noise_schedule")
    if selector.is_blocked:
        raise_all(selector.problems())
    return replace(schedule, params=params), measured, warnings


def _processes(merged: Merged) -> int:
    """Return the number of processes that a resolved recipe states, else that of this run."""
    stated = merged.tables.get("processes") if merged.resolved else None
    return stated if isinstance(stated, int) and not isinstance(stated, bool) else world_size()


def _mentions_measured(annotation: Any) -> bool:
    return MEASURED in get_args(annotation) or any(map(_mentions_measured, get_args(annotation)))


def _placed(problem: Problem, merged: Merged, around: str = "") -> Problem:
    """Return a problem with the file and line of its dotted key, or of the key `around` if it names none."""
    known = problem.where.partition(".")[0] in TABLES and " " not in problem.where
    key = problem.where if known else around
    return replace(problem, where=f"{merged.place(key)} ({problem.where})") if key else problem


def _with_notes(recipe: Recipe, merged: Merged, measured: Sequence[str], warnings: list[str]) -> Recipe:
    """Return the recipe with the origin of each value, the keys without effect and the warnings."""
    origins = {
        key: merged.origins[key].place if key in merged.origins else "default"
        for key, _ in leaves(recipe.to_json())
        if key.partition(".")[0] not in STATED
    }
    for key in measured:
        origins[f"noise_schedule.{key}"] += ", measured"
    given = [key for key, _ in leaves(merged.tables)]
    idle = () if merged.resolved else tuple(checks.idle_keys(recipe, given))
    written = [key for key in idle if not merged.origins[key].inherited]
    warnings += [f"{key} has no effect here ({merged.place(key)})" for key in written]
    warnings += checks.own_warnings(recipe)
    warnings += _changed_since(recipe, merged)
    return replace(recipe, origins=origins, idle=idle, warnings=tuple(warnings))


def _changed_since(recipe: Recipe, merged: Merged) -> list[str]:
    """Describe changes of the data and the plugins since a recipe was resolved."""
    given = merged.tables if merged.resolved else {}
    stated = {key: value for key, value in given.items() if key in ("data", "code")}
    now = {key: value for key, value in recipe.to_json().items() if key in stated}
    return [
        f"{key} was {before} when this recipe was resolved, and is {after}"
        for key, before, after, _ in differences(stated, now)
    ]
