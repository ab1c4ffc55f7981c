"""The plan that `sddit-run -n` prints: every value with its origin, then what it would cost."""

from __future__ import annotations

from rich.console import Console

from sddit.cli.commands.show import shown
from sddit.cli.common import table
from sddit.errors import printable
from sddit.formatting import big
from sddit.recipes.costs import Plan
from sddit.recipes.merge import leaves
from sddit.recipes.recipe import Recipe

LABELLED = ("loss", "ema", "tracker")


def print_plan(plan: Plan, recipe: Recipe, out: Console) -> None:
    """The resolved recipe, then parameters, FLOPs and memory, then what was noticed."""
    print_recipe(recipe, out)
    out.print(f"{recipe.name}-{plan.run_id}", style="bold")
    facts = recipe.facts
    out.print(
        f"{facts.source}: {facts.train_size:,} training images of {'x'.join(map(str, facts.image))}, "
        f"{facts.num_classes or 'no'} classes\n"
    )
    print_views(plan, out)
    print_totals(plan, out)
    for text in (*recipe.warnings, *plan.notes):
        out.print(f"warning: {printable(text)}", style="yellow", soft_wrap=True)
    if idle := [key for key in recipe.idle if not any(key in text for text in recipe.warnings)]:
        out.print(f"idle here: {', '.join(idle)}", style="dim")
    if plan.not_stated:
        out.print(f"cost not stated by: {', '.join(plan.not_stated)}", style="yellow")


def print_recipe(recipe: Recipe, out: Console) -> None:
    """Each key with its value and where that came from, table by table; what is left at its default is dim."""
    values, heading = table("", "", ""), ""
    values.show_header = False
    for dotted, value in leaves(recipe.to_json()):
        if (origin := recipe.origins.get(dotted)) is None or value == {}:
            continue  # an empty table, or what a resolved recipe states beside the settings: name, data, code
        group, key = split(dotted)
        if group != heading:
            values.add_row(printable(f"[{group}]"), style="bold cyan")
        heading = group
        values.add_row(
            printable(key), printable(shown(value)), printable(origin), style="dim" if origin == "default" else ""
        )
    out.print(values)
    out.print()


def split(dotted: str) -> tuple[str, str]:
    """`loss.denoise.weight` is `weight` of `[loss.denoise]`."""
    parts = dotted.split(".")
    depth = 2 if parts[0] in LABELLED and len(parts) > 2 else min(1, len(parts) - 1)
    return ".".join(parts[:depth]), ".".join(parts[depth:])


def print_views(plan: Plan, out: Console) -> None:
    """What one training step runs for one image."""
    views = table("view", "network", "tokens", "FLOPs an image", "of which heads")
    for one in plan.passes:
        both = None if one.backbone_flops is None or one.heads_flops is None else one.backbone_flops + one.heads_flops
        tokens = f"{one.kept:.4g} of {plan.tokens}"
        views.add_row(one.view, one.network, tokens, big(both), big(one.heads_flops))
    out.print(views)
    out.print()


def print_totals(plan: Plan, out: Console) -> None:
    """Parameters, FLOPs, memory: a line each, with the parts they are made of."""
    heads = [f"{big(count)} heads of {label}" for label, count in plan.heads_parameters.items() if count != 0]
    teacher = [f"{big(plan.teacher_parameters)} teacher"] if plan.teacher_parameters != 0 else []
    totals = table("", "", "")
    totals.show_header = False
    totals.add_row("parameters", big(plan.backbone_parameters), ", ".join([*heads, *teacher]))
    totals.add_row(
        "FLOPs",
        big(plan.training_flops),
        f"{plan.steps:,} steps of {big(plan.flops_per_step)} ({plan.batch} images each)",
    )
    each = f"{plan.sampled:,} images sampled at the end, {big(plan.sampling_flops_per_image)} each"
    totals.add_row("", big(plan.sampling_flops), each)
    memory = {name: getattr(plan.memory, name) for name in plan.memory.__slots__}
    parts = ", ".join(f"{big(size, 'B')} {name}" for name, size in memory.items() if size != 0)
    totals.add_row("memory", big(plan.memory.total, "B"), parts)
    out.print(totals)
