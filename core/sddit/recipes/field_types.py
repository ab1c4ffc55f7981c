"""Describe what a setting allows, such as `whole number, 1 to 100`, for messages and `sddit-run show`."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Interval, Le, Len, Lt, MaxLen, MinLen
from pydantic import AfterValidator, BaseModel
from pydantic.fields import FieldInfo

from sddit.recipes.parsing import quoted
from sddit.value_schedules import Between, Ramp, StepOrFraction

SCHEDULE = "{ start, end, shape, power, from, until }"


def expectation(field: FieldInfo) -> str:
    """Return what `field` allows."""
    extra = field.json_schema_extra
    if isinstance(extra, Mapping) and extra.get("path") and field.annotation is str:
        return "text, a path relative to the recipe or, if typed, to the current folder"
    return words(field.annotation, field.metadata)


def words(annotation: Any, metadata: Sequence[Any] = ()) -> str:
    """Return what a type and its constraints allow."""
    if get_origin(annotation) is Annotated:
        annotation, *inner = get_args(annotation)
        metadata = [*inner, *metadata]
    if set(get_args(StepOrFraction)[1:]) & {note for note in metadata if isinstance(note, AfterValidator)}:
        return "steps (a whole number) or a fraction of the run (0.0 to 1.0)"
    counted = "characters" if annotation is str else "of them"
    return f"{_kind(annotation)}{_bounds(_flat(metadata), counted)}"


def _kind(annotation: Any) -> str:
    origin, args = get_origin(annotation), get_args(annotation)
    if origin in (Union, UnionType):
        return " or ".join(words(arg) for arg in args if arg is not NoneType)
    if origin is Literal:
        choices = [quoted(choice) for choice in args]
        return f"one of {', '.join(choices)}" if len(choices) > 1 else choices[0]
    if origin in (tuple, list):
        many = origin is list or args[-1] is Ellipsis
        return f"list of {words(args[0])}" if many else f"[{', '.join(words(arg) for arg in args)}]"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return SCHEDULE if issubclass(annotation, Ramp) else f"table of {', '.join(keys(annotation))}"
    return {int: "whole number", float: "number", bool: "true or false", str: "text", dict: "table"}.get(
        origin or annotation, getattr(annotation, "__name__", str(annotation))
    )


def _flat(metadata: Iterable[Any]) -> Iterable[Any]:
    """Yield the single constraints in `metadata`; pydantic passes some inside a nested Field."""
    for note in metadata:
        if isinstance(note, FieldInfo):
            yield from _flat(note.metadata)
        elif isinstance(note, Interval | Len):
            yield from note
        else:
            yield note


def _bounds(metadata: Iterable[Any], counted: str) -> str:
    """Return the limits; `counted` is what a length counts."""
    low = high = ""
    for note in metadata:
        match note:
            case Ge(ge=value):
                low = f"{value:g}" if isinstance(value, float) else str(value)
            case Gt(gt=value):
                low = f"above {value:g}"
            case Le(le=value):
                high = f"{value:g}" if isinstance(value, float) else str(value)
            case Lt(lt=value):
                high = f"below {value:g}"
            case AfterValidator(func=Between() as between):
                low, high = f"{between.low:g}", "" if math.isinf(between.high) else f"{between.high:g}"
            case MinLen(min_length=value):
                low = f"{value} {counted.removesuffix('s') if value == 1 else counted}"
            case MaxLen(max_length=value):
                high = f"{value} {counted}"
    if low and high and "above" not in low and "below" not in high:
        return f", {low} to {high}"
    lower = low if not low or "above" in low else f"at least {low}"
    upper = high if not high or "below" in high else f"at most {high}"
    return "".join(f", {bound}" for bound in (lower, upper) if bound)


def keys(model: type[BaseModel]) -> list[str]:
    """Return the keys of `model` as a recipe writes them."""
    return [field.alias or name for name, field in model.model_fields.items()]


def models(annotation: Any) -> list[type[BaseModel]]:
    """Return the settings classes inside a type: of `DecoderParams | None`, the first."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for arg in get_args(annotation) for model in models(arg)]


def nested_settings(model: type[BaseModel], key: str) -> type[BaseModel] | None:
    """Return the settings class of the table at a key of `model`; None if the key holds no such table."""
    field = field_at(model, [key])
    return next(iter(models(field.annotation)), None) if field else None


def field_at(model: type[BaseModel], path: Sequence[str | int]) -> FieldInfo | None:
    """Return the field at a path of keys below `model`; for a list index, the field of the list."""
    found: FieldInfo | None = None
    inside = [model]
    for step in path:
        if isinstance(step, int):
            continue
        by_key = {field.alias or name: field for m in inside for name, field in m.model_fields.items()}
        if step not in by_key:
            return None
        found = by_key[step]
        inside = models(found.annotation)
    return found
