"""Resolve a recipe: select its components, check their settings, fill in defaults, and check the slots together.

All problems are collected and raised together, before anything runs. Torch-free.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar, cast, get_args

import sddit
from sddit.data import seen_std
from sddit.data.declared import declared_table
from sddit.data.stated_facts import facts_problems
from sddit.data.undecoded import REFUSED
from sddit.distributed.processes import world_size
from sddit.errors import Problem, SdditError, error, nearest, raise_all
from sddit.interfaces import AttentionParams, CodecParams, DataFacts, Selected
from sddit.plugins.discovery import OURS
from sddit.plugins.host import Host, third_party
from sddit.plugins.host import host as the_host
from sddit.recipes import checks
from sddit.recipes.differences import differences
from sddit.recipes.encoded_data import with_latents
from sddit.recipes.merge import COMMAND_LINE, Merged, Origin, leaves, load, merge_into, of_tables, override
from sddit.recipes.parsing import MAX_INTEGER, quoted
from sddit.recipes.recipe import Recipe
from sddit.recipes.remedies import NO_WEIGHTS, with_command, with_data_command
from sddit.recipes.second_networks import with_second_network
from sddit.recipes.selection import LABELLED, SLOTS, Selector
from sddit.recipes.settings import SETTINGS, EmaSettings, OtherRunSettings, SnapshotSettings, StartSettings
from sddit.recipes.start_weights import complete_weights
from sddit.recipes.validation import unknown_key
from sddit.storage.run_folder import RUN_IDS, read_json, recipe_path

W = TypeVar("W", bound=OtherRunSettings)

ABLATION = "ablation"
"""The table of arms. It changes no other key: resolved, an ablation is its recipe without the arms."""

TABLES = ("seed", "plugins", "extends", *SLOTS, *LABELLED, *SETTINGS, ABLATION)
STATED = ("name", "data", "code", "processes", RUN_IDS)
"""Keys of resolved recipes only: the name, what the data and the plugins were, and the ids of the run."""

FIRST_NUMERICS = "0.1.0"

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
        codes = {problem.code for problem in failure.problems}
        if REFUSED in codes and merged.tables["evaluate"]["features"]:  # a run of an earlier version scored its latents
            merge_into(merged, {"evaluate": {"features": []}}, Origin("no image scores of latents", inherited=True))
            return resolve_merged(merged, host=host)
        about_data = all(code.startswith("SD-D") for code in codes)
        if not about_data or "mean" not in merged.tables.get("data", {}):
            raise
    stand_in = {"dataset": declared_table(merged.tables.pop("data"), merged.tables["dataset"])}
    merge_into(merged, {**stand_in, "evaluate": {"features": []}}, Origin("stated by the run", inherited=True))
    return resolve_merged(merged, host=host)


def resolve_run(folder: Path, *, host: Host | None = None) -> Recipe:
    """Resolve the recipe of a run folder with its data. Raises SD-C407 if the data changed after the run began."""
    recipe = resolve(recipe_path(folder), host=host)
    refuse_changed_data(folder, recipe.facts)
    return recipe


def refuse_changed_data(folder: Path, facts: DataFacts) -> None:
    """Raise SD-C407 unless the data are those that the run in a folder began with."""
    path = recipe_path(folder)
    stated = read_json(path).get("data")
    known = stated.get("fingerprint") if isinstance(stated, dict) else None
    if known not in (None, facts.fingerprint):
        raise error(
            "SD-C407",
            "the data changed after this run began",
            where=str(folder),
            got=f"fingerprint {facts.fingerprint[:12]}",
            expect=f"{str(known)[:12]}, as in {path.name}",
            fix=f"restore the data ({facts.source})",
        )


def resolve_merged(merged: Merged, *, host: Host | None = None) -> Recipe:
    """Resolve a recipe whose layers are already merged."""
    selector = Selector(merged, host or the_host())
    selector.add(_unknown_tables(selector), blocks=False)
    slots, planned = with_latents(selector, with_second_network(selector, selector.slots()))
    labelled = {table: selector.labelled(table) for table in LABELLED}
    averages = {label: selector.settings(EmaSettings, t, f"ema.{label}") for label, t in selector.labels("ema").items()}
    tables: dict[str, Any] = {
        key: selector.settings(SETTINGS[key], merged.tables.get(key, {}), key)
        for key in ("train", "teacher", "evaluate", "about")
    }
    features = selector.features(tables["evaluate"].features, labelled["features"]) if tables["evaluate"] else {}
    seed, name = _seed(selector), _name(selector)
    start, snapshot = _other_run(selector, "start", StartSettings), _other_run(selector, "snapshot", SnapshotSettings)
    declared = planned or _declared_facts(selector, slots)
    facts = declared or _facts(selector, slots)
    if selector.is_blocked:
        raise_all(selector.problems())
    assert facts is not None  # what is missing has left a problem

    facts = _with_decoder(facts, slots.get("codec"), is_read=not declared)
    if declared:
        slots.pop("codec", None)  # no check of it can be made without the data
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
        declared=_declared_as(merged) if declared else "",
        start=start,
        snapshot=snapshot,
        processes=_processes(merged),
        plugin_digests=code_of(selector),
        plugin_files={plugin.resolved_name: plugin.path for plugin in merged.plugins if plugin.is_file},
        kernels={
            c.name: cast(AttentionParams, c.params()) for c in selector.host.registries.attention if not c.missing()
        },
    )
    found = [with_data_command(problem, merged) for problem in checks.check(recipe)]
    selector.add(with_command([_placed(problem, merged) for problem in found], merged))
    raise_all(selector.problems())
    return _with_notes(recipe, merged, measured, warnings)


def code_of(selector: Selector) -> dict[str, str]:
    """Return the identity of each plugin that is used, and of the core where none is our own.

    The core is not named at the first revision of the numbers: ids of that time have no entry for it.
    """
    used = dict(selector.used)
    if sddit.__numerics__ != FIRST_NUMERICS:
        used.setdefault(OURS, f"{OURS} {sddit.__numerics__}")
    return used


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


def _other_run(selector: Selector, table: str, model: type[W]) -> W | None:
    """Return the weights that `[start]` or `[snapshot]` names, with checkpoint, label and hash filled in."""
    if table not in selector.merged.tables:
        return None
    settings = selector.settings(model, selector.merged.tables[table], table)
    try:
        return settings and complete_weights(settings, table, stated=selector.merged.resolved)
    except SdditError as failure:
        keyed = [p if p.where.startswith(f"{table}.") else _about_run(p, table) for p in failure.problems]
        selector.add(_placed(problem, selector.merged) for problem in keyed)
    return None


def _about_run(problem: Problem, table: str) -> Problem:
    """Return a problem of a folder as one of the key that names it, with the folder as what was got."""
    fix = f"train that run first, then name its folder: {table}.run=runs/NAME-ID" if problem.code == "SD-C445" else ""
    return replace(problem, where=f"{table}.run", got=problem.got or problem.where, fix=problem.fix or fix)


def _name(selector: Selector) -> str:
    """Return the name of the run: the stem of the file, which the resolved form keeps."""
    merged = selector.merged
    stem = merged.path.stem if merged.path else "recipe"
    stem = unicodedata.normalize("NFC", stem)  # some systems split an accent from its letter
    name = merged.tables.get("name", stem) if merged.resolved else stem
    if not isinstance(name, str) or not _is_folder_name(name):
        expect = "letters, digits, _, - and . in the name of a recipe"
        near = re.sub(r"[^\w.]+", "-", str(name)).strip("-.") or "recipe"
        fix = f"rename the file, such as to {near}.toml"
        selector.problem("SD-R103", "the name cannot be that of a run folder", "name", quoted(name), expect, fix)
    return str(name)


def _is_folder_name(name: str) -> bool:
    """Return whether a name has letters of any alphabet with their marks, digits, `_`, `.`, `-` and spaces only."""
    letters = "".join(c for c in name if not unicodedata.category(c).startswith("M"))
    return re.fullmatch(r"\w[\w. -]*", letters) is not None


def _declared_as(merged: Merged) -> str:
    """Return which facts of data that do not exist are used, and where they come from."""
    if "declared" in merged.tables["dataset"]:
        place = merged.place("dataset.declared")
        return f"facts of the data are declared in the recipe, not read, and no codec is read ({place})"
    what = "the first run encodes the images; until then, their latents are assumed to have mean 0 and std 1"
    return f"{what} ({merged.place('codec.encode')})"


def _declared_facts(selector: Selector, chosen: Mapping[str, Selected[Any]]) -> DataFacts | None:
    """Return the facts that a recipe declares of data that do not exist, if only its plan is asked for."""
    if not selector.merged.planned or "dataset" not in chosen:
        return None
    facts: DataFacts | None = chosen["dataset"].params.declared_facts()
    return facts


def _facts(selector: Selector, chosen: Mapping[str, Selected[Any]]) -> DataFacts | None:
    selector.add(selector.unmet)
    if "dataset" not in chosen or selector.unmet:
        return None
    try:
        facts: DataFacts = chosen["dataset"].params.facts()
        if chosen["dataset"].component.origin in third_party():
            selector.add(_placed(problem, selector.merged) for problem in facts_problems(facts, "dataset"))
        return facts
    except SdditError as failure:
        problems = (with_data_command(problem, selector.merged) for problem in failure.problems)
        selector.add(_placed(problem, selector.merged, around="dataset") for problem in problems)
    return None


def _with_decoder(facts: DataFacts, codec: Selected[CodecParams] | None, *, is_read: bool) -> DataFacts:
    """Name the codec that decodes samples to images. One for previews only decodes none that could be scored.

    Its weights may be missing where it is not read, as in a plan whose data are declared.
    """
    if codec is None or not facts.is_latent:
        return facts
    try:
        decodes = not codec.params.facts(facts).preview_only
    except SdditError as failure:
        decodes = not is_read and {problem.code for problem in failure.problems} == {NO_WEIGHTS}
    except Exception:  # the checks refuse a codec that cannot be used
        return facts
    return replace(facts, decoder=codec.component.qualified) if decodes else facts


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
        f'({selector.merged.place(f"noise_schedule.{key}")}); write {key} = "{MEASURED}", '
        "unless it repeats a published setting"
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
    warnings += _unusual_labels(recipe, merged)
    warnings += checks.own_warnings(recipe)
    warnings += _changed_since(recipe, merged)
    return replace(recipe, origins=origins, idle=idle, warnings=tuple(warnings))


def _unusual_labels(recipe: Recipe, merged: Merged) -> Iterator[str]:
    """Yield a warning for each [ema.LABEL] that only the command line sets and that is nearly one of the recipe."""
    is_new = {
        label: all(
            origin.place == COMMAND_LINE
            for key, origin in merged.origins.items()
            if f"{key}.".startswith(f"ema.{label}.")
        )
        for label in recipe.ema
    }
    for label in (label for label, new in is_new.items() if new):
        if near := nearest(label, [other for other, new in is_new.items() if not new]):
            yield f"[ema.{label}] is a second EMA, set on the command line only; did you mean ema.{near}?"


def _changed_since(recipe: Recipe, merged: Merged) -> list[str]:
    """Describe changes of the data and the plugins since a recipe was resolved."""
    given = merged.tables if merged.resolved else {}
    stated = {key: value for key, value in given.items() if key in ("data", "code")}
    now = {key: value for key, value in recipe.to_json().items() if key in stated}
    return [
        f"{key} was {before} when this recipe was resolved, and is {after}"
        for key, before, after, _ in differences(stated, now)
    ]
