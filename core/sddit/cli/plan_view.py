"""Print the plan of one run: a summary on one screen, or every value with its origin."""

from __future__ import annotations

import math
from pathlib import Path

from rich.console import Console
from rich.padding import Padding
from rich.table import Table

from sddit.cli.base_changes import BaseChanges
from sddit.cli.common import setting_text, table
from sddit.errors import SdditError, printable
from sddit.formatting import format_duration, format_si
from sddit.interfaces import ViewSpec
from sddit.recipes.costs import Pass, Plan
from sddit.recipes.merge import leaves
from sddit.recipes.recipe import Recipe
from sddit.storage.metrics_log import last_metrics
from sddit.storage.run_folder import METRICS
from sddit.value_schedules import Ramp

LABELLED = ("loss", "ema", "tracker")
SCREEN = 40  # lines of a summary; what does not fit is in --all
MIN_CHANGES = 8  # lines of changes that are always shown


def print_summary(plan: Plan, recipe: Recipe, changes: BaseChanges, folder: Path, out: Console) -> None:
    """Print cost, memory, views, losses and changes from the base recipe."""
    facts = recipe.facts
    size, classes = "x".join(map(str, facts.image)), facts.num_classes or "no"
    out.print(f"{recipe.name}-{plan.run_id}", style="bold")
    out.print(printable(f"data: {facts.source}: {facts.train_size:,} training images of {size}, {classes} classes"))
    print_block("Cost", cost_table(plan, folder), out)
    print_block("Views", view_table(plan, recipe), out)
    print_block("Losses", loss_table(recipe), out)
    fixed = 16 + len(recipe.pair_sampler.params.views()) + len(recipe.losses)  # lines besides the changes
    print_changes(changes, max(MIN_CHANGES, SCREEN - fixed), out)


def print_block(title: str, content: Table, out: Console) -> None:
    """Print an indented table under a title."""
    out.print(f"\n{title}", style="bold cyan")
    out.print(Padding(content, (0, 0, 0, 2), expand=False))


def cost_table(plan: Plan, folder: Path) -> Table:
    """Return parameters, FLOPs, time and memory, one line each, with their parts."""
    heads = [f"{format_si(count)} in heads of {label}" for label, count in plan.heads_parameters.items() if count != 0]
    teacher = [f"{format_si(plan.teacher_parameters)} in the teacher"] if plan.teacher_parameters != 0 else []
    memory = {name: getattr(plan.memory, name) for name in plan.memory.__slots__}
    rows = table("", "", "")
    rows.show_header = False
    rows.add_row("parameters", format_si(plan.backbone_parameters), ", ".join(["backbone", *heads, *teacher]))
    steps = f"{plan.steps:,} steps of {format_si(plan.flops_per_step, 'FLOPs')}, {plan.batch} images each"
    rows.add_row(
        "training", format_si(plan.training_flops, "FLOPs"), f"{steps}; {format_si(plan.flops_per_image)} per image"
    )
    samples = f"{plan.sampled:,} images at the end, {format_si(plan.sampling_flops_per_image, 'FLOPs')} each"
    rows.add_row("sampling", format_si(plan.sampling_flops, "FLOPs"), samples)
    rows.add_row("time", *time_estimate(plan, folder))
    parts = ", ".join(f"{format_si(size, 'B')} {name}" for name, size in memory.items() if size != 0)
    rows.add_row("memory", format_si(plan.memory.total, "B"), parts)
    return rows


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
        rows.add_row(view.name, view.network, mask_text(view), *cost, ", ".join(readers) or "nothing: not run")
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


def loss_table(recipe: Recipe) -> Table:
    """Return component, weight and views of each loss, a line per loss."""
    rows = table("loss", "component", "weight", "reads")
    for label, loss in recipe.losses.items():
        views = ", ".join(view.name for view in recipe.views_of(loss.params))
        reads = views if label in recipe.active_losses else "off: weight 0"
        rows.add_row(label, loss.component.qualified, schedule_text(loss.params.weight), reads)
    return rows


def print_changes(changes: BaseChanges, limit: int, out: Console) -> None:
    """Print the keys that differ from the base recipe, old and new value; those of the command line first."""
    rows = table("", "")
    rows.show_header = False
    ordered = sorted(changes.changes, key=lambda change: not change.from_command_line)
    for change in ordered[:limit]:
        origin = "   (command line)" if change.from_command_line else ""
        rows.add_row(*map(printable, (change.key, f"{change.old} -> {change.new}{origin}")))
    if len(ordered) > limit:
        rows.add_row(f"and {len(ordered) - limit} more (--all)", "")
    if not ordered:
        rows.add_row("none", "")
    print_block(f"Changes from {changes.base or 'the defaults'}", rows, out)


def print_notes(plan: Plan, recipe: Recipe, out: Console) -> None:
    """Print warnings, keys without effect and components that state no cost."""
    for text in (*recipe.warnings, *plan.notes):
        out.print(f"warning: {printable(text)}", style="yellow", soft_wrap=True)
    if idle := [key for key in recipe.idle if not any(key in text for text in recipe.warnings)]:
        out.print(f"no effect here: {', '.join(idle)}", style="dim")
    if plan.not_stated:
        out.print(f"cost not stated by: {', '.join(plan.not_stated)}", style="yellow")


def print_all_values(recipe: Recipe, out: Console) -> None:
    """Print every key with its value and its origin, table by table; defaults are dim."""
    values, heading = table("", "", ""), ""
    values.show_header = False
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
