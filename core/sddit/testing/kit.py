"""The conformance kit: what holds for a component of any kind, and how findings are gathered.

What holds for one kind is in the module of that name under `conformance` (`losses.py`, `backbones.py`, ...), in a
function `examine(case, findings)`. Components are tried on tiny shapes, on the CPU.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from sddit.errors import Problem, SdditError, describe_exception, error, one_of
from sddit.interfaces import Component, Params
from sddit.plugins.host import host
from sddit.recipes.field_types import expectation

CODE = "SD-P220"


class ConformanceError(SdditError):
    """Everything in which a component breaks the contract of its kind."""


@dataclass(slots=True)
class Case:
    """One component with the settings that are tried."""

    component: Component[Any]
    params: Any  # an instance of component.params
    runtime: Mapping[str, Any] = field(default_factory=dict)  # replaces what the kit would build it with

    def build(self, **runtime: Any) -> Any:
        """Build it with what the kit offers, or with what the caller gave instead."""
        return self.component.build(self.params, **{**runtime, **self.runtime})


class Findings:
    """Findings so far."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.problems: list[Problem] = []

    def add(self, what: str, *, got: str = "", expect: str = "", fix: str = "", where: str = "") -> None:
        """Note a problem, once."""
        problem = Problem(CODE, what, where or self.name, got, expect, fix)
        if problem not in self.problems:
            self.problems.append(problem)

    def expect(self, holds: bool, what: str, **fields: str) -> bool:
        """Note a problem unless `holds`; returns `holds`."""
        if not holds:
            self.add(what, **fields)
        return holds

    @contextlib.contextmanager
    def trying(self, doing: str, fix: str = "") -> Iterator[None]:
        """Note what is raised inside, and continue after it."""
        try:
            yield
        except SdditError as refusal:
            self.problems += refusal.problems
        except Exception as failure:
            frame = traceback.extract_tb(failure.__traceback__)[-1]
            self.add(
                f"it raised an error while {doing}",
                got=describe_exception(failure),
                where=f"{frame.filename}:{frame.lineno}",
                fix=fix,
            )


def check(
    component: Component[Any] | str, kind: str = "", *, runtime: Mapping[str, Any] | None = None, **params: Any
) -> None:
    """Try one component against the contract of its kind.

    Args:
        component: the component, or its name: `discrimination`, `acme/masked`.
        kind: its registry, such as `losses`, where the name alone is not enough.
        runtime: what to build it with, in place of the kit's own tiny things; for a loss also the noise `schedule` of
            its views, where one of its own kind is needed.
        params: its settings as a recipe would write them; a setting that is not given takes its default.

    Raises:
        ConformanceError: with everything that was found.
        SdditError: for an unknown name, or an optional dependency that is missing.
    """
    found = component if isinstance(component, Component) else named(component, kind)
    host().registries.all()[found.kind].usable(found.qualified) if found.origin in host().rows else None
    findings = Findings(f"{found.kind} {found.qualified}".replace(" /", " "))
    settings = settings_of(found, params, findings)
    if settings is not None:
        examine_face(found, settings, findings)
        examine = importlib.import_module(f"sddit.testing.conformance.{found.kind}").examine
        with findings.trying("its factory was imported"):
            found.load()
            examine(Case(found, settings, runtime or {}), findings)
    if findings.problems:
        raise ConformanceError(*findings.problems)


def check_plugin(plugin: str | Path) -> None:
    """Try every component of a plugin with its default settings: the name of an installed one, or a file `my_loss.py`.

    Raises:
        ConformanceError: with everything that was found in any of them.
        SdditError: for a plugin that does not load.
    """
    text = str(plugin)
    path = Path(plugin).resolve() if text.endswith(".py") else None
    host().use([path.name if path else text], path.parent if path else None)
    name = next(row.name for row in host().rows.values() if (row.file == str(path) if path else row.name == text))
    problems: list[Problem] = []
    for registry in host().registries.all().values():
        for component in [c for c in registry if c.origin == name]:
            try:
                check(component)
            except ConformanceError as failure:
                problems += failure.problems
    if problems:
        raise ConformanceError(*problems)


def named(name: str, kind: str) -> Component[Any]:
    """Return the component of this name, in whichever registry has it."""
    if "/" in name:
        host().use([name.rpartition("/")[0]])
    registries = host().registries.all()
    if kind:
        return registries[kind].get(name)
    holders = [r for r in registries.values() if any(name in (c.name, c.qualified) for c in r)]
    if len(holders) != 1:
        everything = [name for registry in registries.values() for name in registry.names()]
        expect = f"kind = one of {', '.join(r.kind for r in holders)}" if holders else one_of(name, everything)
        raise error(
            "SD-R110",
            f"{'several components' if holders else 'no component'} named {name!r}",
            where=name,
            expect=expect,
        )
    return holders[0].get(name)


def settings_of(component: Component[Any], given: Mapping[str, Any], findings: Findings) -> Params | None:
    """Return the settings that are tried; None where they do not hold."""
    try:
        return component.params(**given)
    except ValidationError as failure:
        for problem in failure.errors():
            key = ".".join(map(str, problem["loc"]))
            findings.add(
                f"setting {key!r} cannot stand: {problem['msg']}",
                got=repr(problem["input"]) if problem["type"] != "missing" else "nothing",
                fix=f"check(..., {key}=...), or declare a default",
            )
    return None


def examine_face(component: Component[Any], params: Params, findings: Findings) -> None:
    """Check what holds for the settings of any component."""
    findings.expect(bool(component.summary.strip()), "it has no summary", fix='registry.add(..., summary="one line")')
    findings.expect("\n" not in component.summary, "its summary is longer than one line", got=repr(component.summary))
    config = type(params).model_config
    findings.expect(
        config.get("extra") == "forbid", "its settings accept unknown keys", fix="leave model_config as Params has it"
    )
    for name, field_info in type(params).model_fields.items():
        findings.expect(bool(field_info.description), f"setting {name!r} has no description")
        unbounded = _is_count(field_info) and expectation(field_info) == "whole number"
        findings.expect(
            not unbounded, f"setting {name!r} is a whole number without bounds", fix="Field(..., ge=..., le=...)"
        )
    with findings.trying("its settings went through a recipe and back", fix="a tuple needs Field(..., strict=False)"):
        written = json.loads(params.model_dump_json(by_alias=True))
        again = type(params).model_validate(written)
        findings.expect(
            again == params, "its settings change when written to a recipe and read", got=str(again), expect=str(params)
        )


def _is_count(field_info: FieldInfo) -> bool:
    return field_info.annotation is int or field_info.annotation == int | None
