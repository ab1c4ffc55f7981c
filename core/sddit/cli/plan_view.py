"""Print the plan of one run: a summary on one screen, or every value with its origin."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from rich.console import Console
from rich.padding import Padding
from rich.table import Table

from sddit.cli.options import RunOptions
from sddit.cli.output import setting_text, table
from sddit.errors import SdditError, printable
from sddit.formatting import format_duration, format_si
from sddit.interfaces import ViewSpec
from sddit.interfaces.params import json_default
from sddit.recipes.costs import Pass, Plan
from sddit.recipes.device_speeds import FRACTION, Devices
from sddit.recipes.merge import Merged, chain, leaves, parse_override, setting_at, stacked
from sddit.recipes.parsing import shown
from sddit.recipes.recipe import Recipe
from sddit.storage.metrics_log import last_metrics
from sddit.storage.run_folder import METRICS
from sddit.value_schedules import Ramp

NOT_SETTINGS = ("plugins", "ablation", "about")  # top-level keys that are not settings of the run
LABELLED = ("loss", "ema", "tracker")
SCREEN = 40  # lines of a summary; what does not fit is in --all
MIN_CHANGES = 8  # lines of changes that are always shown
MAX_TEXT = 48  # characters of a changed value

Key = tuple[str, ...]


def print_summary(plan: Plan, merged: Merged, recipe: Recipe, options: RunOptions, out: Console) -> None:
    """Print cost, memory, views, losses and changes from the base recipe."""
    facts = recipe.facts
    size, classes = "x".join(map(str, facts.image)), facts.num_classes or "no"
    name = f"{recipe.name}-{plan.run_id}"
    out.print(name, style="bold")
    if recipe.about.method:
        out.print(printable(f"method: {recipe.about.method} ({recipe.about.paper})"))
    out.print(printable(f"data: {facts.source}: {facts.train_size:,} training images of {size}, {classes} classes"))
    print_block("Cost", cost_table(plan, recipe, options.on, options.out / name), out)
    print_block("Views", view_table(plan, recipe), out)
    print_block("Losses", loss_table(recipe), out)
    other_lines = 16 + (options.on is not None) + len(recipe.pair_sampler.params.views()) + len(recipe.losses)
    base, changes = changes_from_base(merged, recipe)
    rows = change_table(changes, max(MIN_CHANGES, SCREEN - other_lines))
    print_block(f"Changes from {base or 'the defaults'}", rows, out)


def print_block(title: str, content: Table, out: Console) -> None:
    out.print(f"\n{title}", style="bold cyan")
    out.print(Padding(content, (0, 0, 0, 2), expand=False))


def cost_table(plan: Plan, recipe: Recipe, on: Devices | None, folder: Path) -> Table:
    """Return parameters, FLOPs, time and memory, one line each, with their parts."""
    heads = [f"{format_si(count)} in heads of {label}" for label, count in plan.heads_parameters.items() if count != 0]
    teacher = [f"{format_si(plan.teacher_parameters)} in the teacher"] if plan.teacher_parameters != 0 else []
    rows = table("", "", "")
    frozen = [f"{format_si(plan.frozen_parameters)} frozen in losses"] if plan.frozen_parameters else []
    rows.add_row("parameters", format_si(plan.backbone_parameters), ", ".join(["backbone", *heads, *frozen, *teacher]))
    steps = f"{plan.steps:,} steps of {format_si(plan.flops_per_step, 'FLOPs')}, {plan.batch} images each"
    update = f", {format_si(plan.update_flops)} in the optimizer's update" if plan.update_flops else ""
    amount = f"{steps}; {format_si(plan.flops_per_image)} per image{update}"
    rows.add_row("training", format_si(plan.training_flops, "FLOPs"), amount)
    samples = f"{plan.sampled:,} images at the end, {format_si(plan.sampling_flops_per_image, 'FLOPs')} each"
    rows.add_row("sampling", format_si(plan.sampling_flops, "FLOPs"), samples)
    rows.add_row("time", *time_estimate(plan, folder))
    if on:
        rows.add_row(f"on {on}", *time_on(plan, recipe, on))
    rows.add_row("memory", format_si(plan.memory.total, "B"), memory_parts(plan, recipe, on))
    if plan.snapshots:
        what = f"on disk, kept in the run folder: {plan.snapshots:,} snapshots of EMAs, for sddit-run ema"
        rows.add_row("snapshots", format_si(plan.snapshot_bytes, "B"), what)
    return rows


def memory_parts(plan: Plan, recipe: Recipe, on: Devices | None) -> str:
    """Return what takes memory, in which processes, and on which device it does not fit."""
    parts = ", ".join(f"{format_si(size, 'B')} {name}" for name, size in asdict(plan.memory).items() if size != 0)
    each = f"in each of {plan.processes} processes ({recipe.train.distributed}): " if plan.processes > 1 else ""
    too_much = on is not None and plan.memory.total is not None and plan.memory.total > on.model.memory
    has = f"; too much for {on.model.name}, which has {format_si(on.model.memory, 'B')}" if on and too_much else ""
    return f"{each}{parts}{has}"


def stated_times(plan: Plan, recipe: Recipe, on: Devices) -> dict[str, Any]:
    """Return the estimate for named devices, for JSON. None: not known."""
    precision = recipe.train.precision
    return {
        "devices": str(on),
        "peak_flops": on.model.peak.get(precision),
        "fraction": FRACTION,
        "training_seconds": on.seconds(plan.training_flops, precision),
        "sampling_seconds": on.seconds(plan.sampling_flops, precision),
    }


def time_on(plan: Plan, recipe: Recipe, on: Devices) -> tuple[str, str]:
    """Return the training time on named devices, and what it assumes."""
    estimate, precision = stated_times(plan, recipe, on), recipe.train.precision
    if estimate["training_seconds"] is None:
        what = "FLOPs are not stated" if plan.training_flops is None else f"no figure for {precision}"
        return "unknown", what
    sampling = format_duration(estimate["sampling_seconds"]) if estimate["sampling_seconds"] is not None else "unknown"
    peak = f"{FRACTION:.0%} of {format_si(estimate['peak_flops'], 'FLOP/s')} each ({precision})"
    note = f"of training, {sampling} for the images at the end; at {peak}: stated, not measured"
    return format_duration(estimate["training_seconds"]), note


def time_estimate(plan: Plan, folder: Path) -> tuple[str, str]:
    """Return the training time at the pace that the run's own log shows, and how it is known."""
    try:
        last = last_metrics(folder / METRICS)
        step, seconds = int(last.get("step", 0)), float(last.get("seconds", 0.0))
    except (SdditError, OSError, ValueError, TypeError, AttributeError, OverflowError):  # no log, or a damaged one
        step, seconds = 0, 0.0
    if not (step > 0 and 0 < seconds < math.inf):
        return "unknown", "`sddit-run bench RECIPE` measures images per second on this machine"
    total = format_duration(seconds / step * plan.steps)
    return total, f"of training, at the pace of the first {step:,} steps in {folder}"


def view_table(plan: Plan, recipe: Recipe) -> Table:
    """Return the views that a training step runs for one image, a line per view."""
    rows = table("view", "network", "mask ratio", "tokens", "FLOPs per image", "in heads", "read by")
    passes = {one.view: one for one in plan.passes}
    for view in recipe.pair_sampler.params.views():
        readers = [label for label, loss in recipe.active_losses.items() if view in recipe.views_of(loss.params)]
        cost = view_cost(passes[view.name], plan) if view.name in passes else ["", "", ""]
        mask = mask_text(view) + (f", path drop {schedule_text(view.path_drop)}" if view.drops_path else "")
        rows.add_row(view.name, view.network, mask, *cost, ", ".join(readers) or "nothing: not run")
    return rows


def view_cost(one: Pass, plan: Plan) -> list[str]:
    """Return visible tokens, FLOPs per image, and the part of the FLOPs in loss heads."""
    return [f"{one.kept:.4g} of {plan.tokens}", format_si(one.flops), format_si(one.heads_flops)]


def mask_text(view: ViewSpec) -> str:
    """Return `none`, `0.3`, `0.3 to 0.5` (drawn per step) or `0.5 -> 0 (cosine)` (over the run)."""
    if not view.is_masked:
        return "none"
    ratio = schedule_text(view.mask_ratio)
    if not view.mask_spread:
        return ratio
    if isinstance(view.mask_ratio, Ramp):
        return f"{ratio}, spread {view.mask_spread:g}"
    return f"{ratio} to {view.mask_ratio + view.mask_spread:g}"


def schedule_text(value: float | Ramp) -> str:
    """Return `0.1`, or `0.5 -> 0 (cosine)`."""
    return f"{value.start:g} -> {value.end:g} ({value.shape})" if isinstance(value, Ramp) else f"{value:g}"


def reads_text(recipe: Recipe, label: str) -> str:
    """Return the views that a loss reads, and the blocks of their taps: `student at block 2 of 6, teacher`."""
    loss, wants = recipe.losses[label].params, recipe.wants([label])
    found = []
    for view in recipe.views_of(loss):
        blocks = " and ".join(recipe.backbone.params.tap_text(tap) for tap in wants[view.name].taps)
        found.append(f"{view.name} at {blocks}" if blocks else view.name)
    return ", ".join(found)


def loss_table(recipe: Recipe) -> Table:
    rows = table("loss", "component", "weight", "reads")
    for label, loss in recipe.losses.items():
        reads = reads_text(recipe, label) if label in recipe.active_losses else "off: weight 0"
        rows.add_row(label, loss.component.qualified, schedule_text(loss.params.weight), reads)
    return rows


def change_table(changes: Sequence[tuple[str, str]], limit: int) -> Table:
    rows = table("", "")
    for change in changes[:limit]:
        rows.add_row(*map(printable, change))
    if len(changes) > limit:
        rows.add_row(f"and {len(changes) - limit} more (--all)", "")
    if not changes:
        rows.add_row("none", "")
    return rows


def changes_from_base(merged: Merged, recipe: Recipe) -> tuple[str, list[tuple[str, str]]]:
    """Return the path of the base recipe and (key, `old -> new`) of each change from it, the command line's first.

    The base is the recipe that the file extends; empty: the defaults. A resolved recipe (`.json`) states every key, so
    it is its own base: only the command line changes it. The same holds for a file that extends none, if there are
    overrides.
    """
    assert merged.path is not None, "a recipe that was read has a path"
    layers = chain(merged.path)
    own_base = merged.resolved or (len(layers) == 1 and bool(merged.overrides))
    inherited = layers if own_base else layers[:-1]
    base = stacked(merged.path, inherited, ()).tables if inherited else {}
    overridden = dict.fromkeys(parse_override(text).path for text in merged.overrides)
    in_file = [] if own_base else [key for key in setting_keys(layers[-1].tables) if key not in overridden]
    changes = []
    for key in (*overridden, *in_file):
        inherited_value = setting_at(base, key)
        default = default_value(recipe, key) if inherited_value is None else None
        old, new = inherited_value if default is None else default, setting_at(merged.tables, key)
        if key[0] not in NOT_SETTINGS and setting_text(old) != setting_text(new):
            mark = "" if default is None else " (default)"
            origin = "   (command line)" if key in overridden else ""
            change = f"{setting_text(old, MAX_TEXT)}{mark} -> {setting_text(new, MAX_TEXT)}{origin}"
            changes.append((".".join(key), change))
    return shown(inherited[-1].path) if inherited else "", changes


def setting_keys(table: Mapping[str, Any], path: Key = ()) -> Iterator[Key]:
    """Yield the path of every setting in a table. A value schedule with start and end is one setting."""
    for name, value in table.items():
        if isinstance(value, Mapping) and not {"start", "end"} <= value.keys():
            yield from setting_keys(value, (*path, name))
        else:
            yield (*path, name)


def default_value(recipe: Recipe, key: Key) -> Any:
    """Return the default of a key of the resolved recipe; None if it has none."""
    if key == ("seed",):
        return 0
    labelled = {"loss": recipe.losses, "ema": recipe.ema, "tracker": recipe.trackers, "features": recipe.features}
    entry: Any = getattr(recipe, key[0], None)
    path = key[1:]
    if key[0] in labelled and path:
        entry, path = labelled[key[0]].get(path[0]), path[1:]
    model = getattr(entry, "params", entry)
    if not isinstance(model, BaseModel) or not path:
        return None
    fields = type(model).model_fields
    return setting_at({field.alias or name: json_default(field) for name, field in fields.items()}, path)


def plan_notes(recipe: Recipe, plan: Plan) -> Iterator[tuple[str, str]]:
    """Yield declared facts, warnings, keys without effect and components that state no cost, each with the style to
    print it in.
    """
    if recipe.declared:
        yield f"{recipe.declared}: the run will have another id", "yellow"
    for warning in (*recipe.warnings, *plan.notes):
        yield f"warning: {warning}", "yellow"
    if idle := [key for key in recipe.idle if not any(key in text for text in recipe.warnings)]:
        yield f"no effect here: {', '.join(idle)}", "dim"
    if plan.not_stated:
        yield f"cost not stated by {', '.join(plan.not_stated)}", "yellow"


def print_all_values(recipe: Recipe, out: Console) -> None:
    """Print every key with its value and its origin, table by table; defaults are dim."""
    values, heading = table("", "", ""), ""
    for dotted, value in leaves(recipe.to_json()):
        if (origin := recipe.origins.get(dotted)) is None or value == {}:
            continue  # an empty table, or what a resolved recipe states in addition: name, data, code
        group, key = split_key(dotted)
        if group != heading:
            values.add_row(printable(f"[{group}]"), style="bold cyan")
        heading = group
        style = "dim" if origin == "default" else ""
        values.add_row(*map(printable, (key, setting_text(value), origin)), style=style)
    out.print(values)


def split_key(dotted: str) -> tuple[str, str]:
    """Split `loss.denoise.weight` into its table, `loss.denoise`, and its key, `weight`."""
    parts = dotted.split(".")
    depth = 2 if parts[0] in LABELLED and len(parts) > 2 else min(1, len(parts) - 1)
    return ".".join(parts[:depth]), ".".join(parts[depth:])
