"""Check components against the contract of their kind.

What holds for one kind is in the module of that name under `conformance` (`losses.py`, `backbones.py`, ...), in a
function `examine(case, findings)`. Components are tested on tiny shapes, on the CPU.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from sddit.errors import Problem, SdditError, error, one_of
from sddit.interfaces import Component
from sddit.plugins.host import host, third_party
from sddit.recipes.field_types import expectation

if TYPE_CHECKING:
    from sddit.testing.case import Case


TESTED = {
    "losses": "settings, shape, finite, repeatable, changes nothing, gradients, buffers, precision, processes, cost",
    "backbones": "settings, outputs, taps, masks, gradients, independence of images, precision, cost",
    "codecs": "settings, facts, shapes, repeatable, changes nothing, independence of images, refusals",
    "samplers": "settings, precision, evaluations, known results, independence of images",
}
"""What the kit tests, in words."""


class ConformanceError(SdditError):
    """Everything in which a component breaks the contract of its kind."""


def check(
    component: Component[Any] | str, kind: str = "", *, runtime: Mapping[str, Any] | None = None, **params: Any
) -> None:
    """Check one component against the contract of its kind.

    Args:
        component: the component, or its name: `discrimination`, `acme/masked`.
        kind: its registry, such as `losses`, if the name alone is ambiguous.
        runtime: what to build it with, in place of the kit's own tiny objects; for a loss also the noise `schedule` of
            its views, if it needs a certain one.
        params: its settings as a recipe would write them; a setting that is not given takes its default, or the first
            of its `examples`.

    Raises:
        ConformanceError: with everything that was found.
        SdditError: for an unknown name, or an optional dependency that is missing.
    """
    from sddit.testing.case import Case

    found = component if isinstance(component, Component) else named(component, kind)
    if found.origin in host().rows:
        host().registries.all()[found.kind].usable(found.qualified)
    case = Case(found, runtime or {})
    if set_params(case, params):
        examine_settings(case)
        with case.trying("its factory was imported"):
            found.load()
            importlib.import_module(f"sddit.testing.conformance.{found.kind}").examine(case)
    if case.problems:
        raise ConformanceError(*case.problems)


@dataclass(frozen=True, slots=True)
class Checked:
    """One component of a plugin, and the problems found in it."""

    component: str  # "losses my_loss/my_loss"
    tested: str  # in words
    problems: tuple[Problem, ...]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def check_plugin(plugin: str | Path) -> None:
    """Check every component of a plugin with its default settings: the name of an installed one, or `my_loss.py`.

    Raises:
        ConformanceError: with everything that was found in any of them.
        SdditError: for a plugin that does not load.
    """
    problems = [problem for one in examine_plugin(plugin) for problem in one.problems]
    if problems:
        raise ConformanceError(*problems)


def examine_plugin(plugin: str | Path, where: str = "plugins") -> list[Checked]:
    """Return what `check_plugin` finds, for each component. Raises SdditError for a plugin that does not load."""
    name = host().use_given(str(plugin), where=where)
    checked: list[Checked] = []
    for registry in host().registries.all().values():
        for component in [c for c in registry if c.origin == name]:
            tested = TESTED.get(registry.kind, "its settings and the contract of its kind")
            checked.append(Checked(f"{registry.kind} {component.qualified}", tested, all_problems(component)))
    return checked


def all_problems(component: Component[Any]) -> tuple[Problem, ...]:
    """Return what `check` finds in a component with its default settings."""
    try:
        check(component)
    except SdditError as failure:
        return failure.problems
    return ()


def contract_problems(component: Component[Any]) -> tuple[Problem, ...]:
    """Return what `check` finds in a component of a plugin that a run uses.

    Nothing is found in a component that is ours, or that `lacks_values`.
    """
    if component.origin not in third_party() or lacks_values(component):
        return ()
    return all_problems(component)


def lacks_values(component: Component[Any]) -> list[str]:
    """Return the settings with neither a default nor an example, without which the kit cannot test a component."""
    fields = component.params.model_fields.items()
    return [info.alias or name for name, info in fields if info.is_required() and not info.examples]


def examples(component: Component[Any]) -> dict[str, Any]:
    """Return the first example of each setting without a default: Field(..., examples=[16])."""
    fields = component.params.model_fields.items()
    return {info.alias or name: info.examples[0] for name, info in fields if info.is_required() and info.examples}


def named(name: str, kind: str) -> Component[Any]:
    """Return the component of this name, in any registry if no kind is given."""
    if "/" in name:
        host().use([name.rpartition("/")[0]])
    registries = host().registries.all()
    if kind:
        return registries[kind].get(name)
    holders = [r for r in registries.values() if any(name in (c.name, c.qualified) for c in r)]
    if len(holders) == 1:
        return holders[0].get(name)
    if holders:
        kinds = ", ".join(r.kind for r in holders)
        raise error("SD-R110", f"several components named {name!r}", where=name, expect=f"kind = one of {kinds}")
    everything = [known for registry in registries.values() for known in registry.names()]
    raise error("SD-R110", f"no component named {name!r}", where=name, expect=one_of(name, everything))


def set_params(case: Case, given: Mapping[str, Any]) -> bool:
    """Return whether the settings are valid, and hand them to the case."""
    try:
        case.params = case.component.params(**{**examples(case.component), **given})
    except ValidationError as failure:
        for problem in failure.errors():
            key = ".".join(map(str, problem["loc"]))
            got = "nothing" if problem["type"] == "missing" else repr(problem["input"])
            fix = (
                f"declare a default, or an example for this test, Field(..., examples=[...]), or check(..., {key}=...)"
            )
            case.add(f"setting {key!r} is invalid: {problem['msg']}", got=got, fix=fix)
        return False
    return True


def examine_settings(case: Case) -> None:
    """Check what holds for the summary and the settings of any component."""
    summary = case.component.summary
    params = case.component.params
    case.expect(bool(summary.strip()), "it has no summary", fix='registry.add(..., summary="one line")')
    case.expect("\n" not in summary, "its summary is longer than one line", got=repr(summary))
    forbids = params.model_config.get("extra") == "forbid"
    case.expect(forbids, "its settings accept unknown keys", fix="leave model_config as Params has it")
    for name, info in params.model_fields.items():
        case.expect(bool(info.description), f"setting {name!r} has no description")
        is_integer = info.annotation is int or info.annotation == int | None
        bounded = not is_integer or expectation(info) != "whole number"
        case.expect(bounded, f"setting {name!r} is a whole number without bounds", fix="Field(..., ge=..., le=...)")
    with case.trying("its settings went through a recipe and back", fix="a tuple needs Field(..., strict=False)"):
        again = params.model_validate(json.loads(case.params.model_dump_json(by_alias=True)))
        case.equal(again, case.params, "its settings change when written to a recipe and read")
