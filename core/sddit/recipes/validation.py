"""Validate one table with its settings class, and describe every problem for the user."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from sddit.errors import Problem, SdditError, one_of
from sddit.recipes.field_types import expectation, field_at, keys, models
from sddit.recipes.parsing import correction_of, quoted

M = TypeVar("M", bound=BaseModel)
Path = tuple[str | int, ...]

TOP_KEYS = ("seed", "plugins", "extends")


def validated(
    model: type[M],
    given: Mapping[str, Any],
    *,
    table: str,
    where: str | Callable[[str], str] = "",
    fix: str = "",
    also: Sequence[str] = (),
    typed: Callable[[str], str] = lambda key: "",
) -> M:
    """Return the settings from the keys of one table. Raises SdditError with every problem.

    Args:
        table: the dotted key of the table, such as `loss.denoise`.
        where: a location, or a function from a dotted key to where it was set.
        fix: a command that lists the keys of this table.
        also: further keys that the table may have, which are not in `given`: the `name` of a component.
        typed: returns the text of an override of a dotted key; empty: it is not from the command line.
    """
    try:
        # As JSON, a list is a tuple, and nothing else is taken for what it is not.
        return model.model_validate_json(json.dumps(given, allow_nan=False))
    except ValidationError as failure:
        place = where if callable(where) else lambda key: where
        found = [_problem(model, table, path, errors, place, fix, also) for path, errors in _grouped(failure, given)]
        raise SdditError(*(_as_typed(problem, model, table, typed) for problem in found)) from None


def _grouped(failure: ValidationError, given: Mapping[str, Any]) -> list[tuple[Path, list[ErrorDetails]]]:
    """Group errors by the path in the table. Of a union, only the branch that matches deepest is reported."""
    groups: dict[Path, list[ErrorDetails]] = {}
    for detail in failure.errors(include_url=False):
        groups.setdefault(_typed_path(detail, given), []).append(detail)
    return [(p, errors) for p, errors in groups.items() if not any(o[: len(p)] == p != o and p for o in groups)]


def _typed_path(detail: ErrorDetails, given: Mapping[str, Any]) -> Path:
    """Return the location without the names that pydantic gives to the branches of a union."""
    path: list[str | int] = []
    inside: Any = given
    for step in detail["loc"]:
        here = inside if isinstance(inside, dict) else dict(enumerate(inside)) if isinstance(inside, list) else {}
        if step in here:
            path.append(step)
            inside = here[step]
    if detail["type"] == "missing" and isinstance(detail["loc"][-1], str):
        path.append(detail["loc"][-1])
    return tuple(path)


def _problem(
    model: type[BaseModel],
    table: str,
    path: Path,
    errors: Sequence[ErrorDetails],
    place: Callable[[str], str],
    fix: str,
    also: Sequence[str],
) -> Problem:
    dotted = ".".join(str(step) for step in (table, *path) if step != "")
    where, detail = place(dotted), errors[0]
    message = detail["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")  # of a validator
    if not path:
        return Problem("SD-R108", f"{dotted!r} contradicts itself: {message}", where, fix=fix)
    last, value, field = path[-1], detail["input"], field_at(model, path)
    expect = expectation(field) if field else ""
    got = f"{f'{path[-2]}[{last}]' if isinstance(last, int) else last} = {quoted(value)}"
    what = "is out of range"
    match detail["type"]:
        case "extra_forbidden":
            around = field_at(model, path[:-1])
            known = [key for inner in (models(around.annotation) if around else [model]) for key in keys(inner)]
            return unknown_key(dotted, got, [*also, *known] if len(path) == 1 else known, where, fix)
        case "missing" if isinstance(detail["loc"][-1], str):
            remedy = f"{dotted} = ..., {fix}".rstrip(", ")
            return Problem("SD-R109", f"{dotted!r} is missing", where, "nothing", expect, remedy)
        case "finite_number":
            return Problem("SD-R106", f"{dotted!r} must be finite", where, got, expect)
        case "int_type" if isinstance(value, float) and value.is_integer() and "whole number" in expect:
            what = f"{dotted!r} is a whole number"
            return Problem("SD-R105", what, where, got, expect, f"write {int(value)}")
        case "literal_error" if isinstance(value, str) and len(errors) == 1:
            choices = [part.strip("'") for part in detail["ctx"]["expected"].replace(" or ", ", ").split(", ")]
            what = "has no such choice"
            if hint := _hint(field, value):
                return Problem("SD-R108", f"{dotted!r} {what}", where, got, expect, hint)
            expect = one_of(value, filter(None, choices))
        case "string_pattern_mismatch":
            what, expect = "is of another form", f"text of the form {detail['ctx']['pattern']}"
        case "value_error" | "assertion_error":
            what = f"is not allowed: {message}"
        case kind if kind.endswith("_type") or kind == "missing" or len(errors) > 1:
            return Problem(
                "SD-R103", f"{dotted!r} is of the wrong kind", where, got, expect, _suggested_fix(value, expect)
            )
    return Problem("SD-R108", f"{dotted!r} {what}", where, got, expect or message)


def _hint(field: FieldInfo | None, value: str) -> str:
    """Return the fix that a field states for a choice that others have: `{"hints": {"fp16": "..."}}`."""
    extra = field.json_schema_extra if field else None
    hints: Any = extra.get("hints", {}) if isinstance(extra, Mapping) else {}
    return str(hints.get(value.casefold(), ""))


def _as_typed(problem: Problem, model: type[BaseModel], table: str, typed: Callable[[str], str]) -> Problem:
    """Return a problem of text that a shell took the quotes from, with the override that passes it as text."""
    if problem.code != "SD-R103" or not problem.expect.startswith(("text", "list of text")):
        return problem
    dotted = problem.what.split("'")[1]
    key = dotted.removeprefix(f"{table}.")
    field, text = field_at(model, key.split(".")), typed(dotted)
    if not text or not field or text.startswith(("[", "{", '"', "'")):
        return problem
    extra = field.json_schema_extra if isinstance(field.json_schema_extra, Mapping) else {}
    if problem.expect.startswith("list"):
        fix = shlex.quote(f"{dotted}={json.dumps([part.strip() for part in text.split(',')])}")
    elif extra.get("path"):
        fix = f"{dotted}=./{shlex.quote(text)}"
    else:
        fix = shlex.quote(f"{dotted}={json.dumps(text)}")
    return replace(problem, got=f"{key} = {text}", fix=fix)


def unknown_key(dotted: str, got: str, known: Sequence[str], where: str, fix: str = "") -> Problem:
    """Return the problem of a key that its table does not have."""
    key = dotted.rpartition(".")[2]
    if key in TOP_KEYS and "." in dotted:
        what = f"unknown key {dotted!r}: top-level keys must be above the first [table]"
        return Problem("SD-R102", what, where, got, fix=f"move {key!r} to the top of the file")
    rename, expect = ("rename the key", one_of(key, known)) if known else ("remove the key", "no keys here")
    fix = f"{rename}, or run  {fix}" if fix else rename
    return Problem("SD-R102", f"unknown key {dotted!r}", where, got, expect, fix)


def _suggested_fix(value: Any, expect: str) -> str:
    """Return a fix for text where another type is expected, such as an override's `True` or `010`, or the reverse."""
    if not isinstance(value, str):
        return "put the text in quotes" if expect.startswith("text") else ""
    fix = "" if "text" in expect else correction_of(value)
    if not fix.startswith("put the text in quotes"):
        return fix
    if expect == "true or false":
        return "write true or false"
    kind = expect.partition(",")[0]
    return f"write a {kind}" if kind in {"whole number", "number"} and " or " not in expect else ""
