"""`sddit-run show`: list the components that a recipe can use, and their settings."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import click
from pydantic import BaseModel
from rich.padding import Padding

from sddit.ablations.planning.ablation_settings import AblationSettings
from sddit.cli.options import SdditCommand, json_option, plugin_option
from sddit.cli.output import console, notice, print_json, setting_text, table
from sddit.errors import error, one_of, printable
from sddit.interfaces import Component
from sddit.interfaces.params import json_default
from sddit.plugins import hookspecs
from sddit.plugins.discovery import plugins_named_by
from sddit.plugins.host import host
from sddit.plugins.registry import Registry
from sddit.recipes.field_types import expectation, models
from sddit.recipes.settings import (
    AboutSettings,
    EmaSettings,
    EvaluateSettings,
    SnapshotSettings,
    StartSettings,
    TeacherSettings,
    TrainSettings,
)

EXAMPLES = """
sddit-run show                             all kinds of components
sddit-run show losses                      the available losses
sddit-run show losses discrimination       settings of one loss
sddit-run show train                       settings of [train]
sddit-run show losses mine --plugin ./mine.py
"""
TABLES: dict[str, type[BaseModel]] = {
    "train": TrainSettings,
    "teacher": TeacherSettings,
    "ema": EmaSettings,
    "evaluate": EvaluateSettings,
    "start": StartSettings,
    "snapshot": SnapshotSettings,
    "about": AboutSettings,
    "ablation": AblationSettings,
}


@click.command("show", cls=SdditCommand, examples=EXAMPLES)
@click.argument("kind", required=False)
@click.argument("name", required=False)
@plugin_option
@json_option
@click.option("--schema", is_flag=True, help="Print the JSON schema of the settings.")
def show(kind: str | None, name: str | None, plugin: tuple[str, ...], as_json: bool, schema: bool) -> None:
    """List kinds of components, components, or settings."""
    if name is not None and kind in TABLES:
        raise click.UsageError(f"[{kind}] is a table of the recipe and has no components; use: show {kind}")
    if schema and name is None and kind not in TABLES:
        raise click.UsageError("--schema prints the settings of one component or table; use: show KIND NAME --schema")
    host().announce = notice
    for given in (*plugin, *plugins_named_by([name or ""])):
        host().use_given(given, where="command line")
    if kind is None:
        show_kinds(as_json)
    elif kind in TABLES:
        params = TABLES[kind]
        show_settings(params, settings_of(params), [(inspect.getdoc(params) or "", "bold")], as_json, schema)
    elif name is None:
        show_components(registry_of(kind), as_json)
    else:
        component = registry_of(kind).get(name, where="command line")
        named = f"{component.qualified}: {component.summary}"
        head = [(named, "bold"), (component.paper, ""), (missing_note(component), "yellow")]
        head = [(printable(text), style) for text, style in head if text]
        show_settings(component.params, component_record(component), head, as_json, schema)


def registry_of(kind: str) -> Registry[Any]:
    """Return the registry of a kind, given as `losses` or by its table in a recipe, `loss`."""
    registries = host().registries.all()
    by_name = {**{r.slot: r for r in registries.values()}, **registries}
    if kind not in by_name:
        holders = [r.kind for r in registries.values() if kind in r.names()]
        close = f", or  sddit-run show {holders[0]} {kind}" if holders else ""
        raise error(
            "SD-R111",
            f"unknown kind of component {kind!r}",
            where="command line",
            got=kind,
            expect=one_of(kind, [*registries, *TABLES], max_names=20),
            fix=f"run  sddit-run show  for the list of kinds{close}",
        )
    return by_name[kind]


def show_kinds(as_json: bool) -> None:
    """Print each kind with the text of its hook, and its components."""
    registries = host().registries.all()
    if as_json:
        hooks = {kind: {"hook": f"register_{kind}", "doc": hook_text(kind)} for kind in registries}
        print_json({kind: {**hooks[kind], "components": r.names()} for kind, r in registries.items()})
        return
    rows = table("kind", "use in a recipe, and components")
    for kind, registry in registries.items():
        names = ", ".join(registry.names()) or "none installed"
        rows.add_row(kind, f"{hook_text(kind)}\n{printable(names)}\n")
    for name, settings in TABLES.items():
        rows.add_row(f"[{name}]", f"{inspect.getdoc(settings)}\n")
    out = console()
    out.print(rows)
    out.print("sddit-run show KIND NAME   shows the settings of a component", style="dim")


def hook_text(kind: str) -> str:
    return inspect.getdoc(getattr(hookspecs, f"register_{kind}")) or ""


def show_components(registry: Registry[Any], as_json: bool) -> None:
    components = list(registry)
    if as_json:
        print_json([component_record(component) for component in components])
        return
    out = console()
    out.print(f"{hook_text(registry.kind)}\n")
    rows = table("name", "plugin", "", "paper")
    names = [c.name for c in components]
    for c in components:
        name = c.name if names.count(c.name) == 1 else c.qualified
        summary = f"{c.summary} {missing_note(c)}".rstrip()
        rows.add_row(*map(printable, (name, c.origin, summary, c.paper)))
    out.print(rows)


def missing_note(component: Component[Any]) -> str:
    lacking = component.missing()
    return f"Needs {', '.join(lacking)}: not installed." if lacking else ""


def component_record(component: Component[Any]) -> dict[str, Any]:
    return {
        "kind": component.kind,
        "name": component.name,
        "plugin": component.origin,
        "summary": component.summary,
        "paper": component.paper,
        "requires": list(component.requires),
        "missing": component.missing(),
        "settings": settings_of(component.params),
    }


def show_settings(
    params: type[BaseModel], record: Any, head: Sequence[tuple[str, str]], as_json: bool, schema: bool
) -> None:
    """Print settings: the head, a list of (text, style), then a paragraph per key; or JSON."""
    if schema or as_json:
        print_json(params.model_json_schema() if schema else record)
        return
    out = console()
    for text, style in head:
        out.print(text, style=style)
    out.print()
    settings = settings_of(params)
    if not settings:
        out.print("no settings")
    for entry in settings:
        default = "required" if entry["required"] else f"default {setting_text(entry['default'])}"
        out.print(entry["key"], style="bold cyan", end="")
        out.print(f"   {entry['type']}   ({default})")
        out.print(Padding(printable(entry["description"]), (0, 0, 0, 4), expand=False))


def settings_of(params: type[BaseModel], prefix: str = "") -> list[dict[str, Any]]:
    """Return every key; keys of inner tables as `decoder.depth`."""
    settings = []
    for name, field in params.model_fields.items():
        key = f"{prefix}{field.alias or name}"
        settings.append(
            {
                "key": key,
                "type": expectation(field),
                "required": field.is_required(),
                "default": json_default(field),
                "description": field.description or "",
            }
        )
        for inner in models(field.annotation):
            if inner.__module__ != "sddit.value_schedules":  # a value schedule is one value
                settings += settings_of(inner, f"{key}.")
    return settings
