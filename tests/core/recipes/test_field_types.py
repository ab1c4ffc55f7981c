"""Test the description of the values that a setting allows."""

from __future__ import annotations

from typing import Annotated, Literal

import pytest
from pydantic import Field

from sddit.errors import SdditError
from sddit.interfaces import Params
from sddit.recipes.field_types import expectation, field_at, keys, models
from sddit.recipes.validation import validated
from sddit.value_schedules import StepOrFraction, Value, bounded


class Inner(Params):
    depth: int = Field(1, ge=1, description="x")


class Everything(Params):
    whole: int = Field(1, description="whole number")
    small: int = Field(1, ge=1, le=100, description="whole number, 1 to 100")
    seeds: int | None = Field(None, ge=0, description="whole number, at least 0")
    share: float = Field(0.5, ge=0, lt=1, description="number, at least 0, below 1")
    part: float = Field(0.5, gt=0, le=1, description="number, above 0, at most 1")
    inside: float = Field(0.5, gt=0, lt=1, description="number, above 0, below 1")
    positive: float = Field(0.5, gt=0, description="number, above 0")
    most: float = Field(0.5, le=2.5, description="number, at most 2.5")
    flag: bool = Field(False, description="true or false")
    text: str = Field("", description="text")
    choice: Literal["a", "b"] = Field("a", description='one of "a", "b"')
    data: Annotated[float, Field(gt=0)] | Literal["measured"] = Field(1.0, description='number, above 0 or "measured"')
    ramp: Value = Field(1.0, description="number or { start, end, shape, power, from, until }")
    weight: Annotated[Value, bounded(0)] = Field(
        1.0, description="number or { start, end, shape, power, from, until }, at least 0"
    )
    momentum: Annotated[Value, bounded(0, 1)] = Field(
        1.0, description="number or { start, end, shape, power, from, until }, 0 to 1"
    )
    until: StepOrFraction = Field(1.0, description="steps (a whole number) or a fraction of the run (0.0 to 1.0)")
    names: tuple[str, ...] = Field((), description="list of text")
    window: tuple[float, float] | None = Field(None, description="[number, number]")
    few: tuple[int, ...] = Field((), max_length=3, description="list of whole number, at most 3 of them")
    some: tuple[int, ...] = Field((1,), min_length=1, description="list of whole number, at least 1 of them")
    name: str = Field("x", min_length=1, max_length=9, description="text, 1 character to 9 characters")
    inner: Inner | None = Field(None, description="table of depth")
    width_: int = Field(1, alias="width", description="whole number")


@pytest.mark.parametrize("name", Everything.model_fields)
def test_every_kind_of_field_is_described(name: str) -> None:
    field = Everything.model_fields[name]
    assert expectation(field) == field.description


def test_keys_are_those_that_a_recipe_writes() -> None:
    assert "width" in keys(Everything)
    assert "width_" not in keys(Everything)


def test_a_field_is_found_by_its_path() -> None:
    assert field_at(Everything, ("inner", "depth")) is Inner.model_fields["depth"]
    assert field_at(Everything, ("window", 1)) is Everything.model_fields["window"]
    assert field_at(Everything, ("inner", "nothing")) is None
    assert models(Everything.model_fields["inner"].annotation) == [Inner]


def test_lists_are_taken_for_tuples_and_nothing_else_is_bent() -> None:
    assert validated(Everything, {"names": ["a"], "window": [1, 2]}, table="t").window == (1.0, 2.0)
    bent = [{"whole": True}, {"whole": 1.0}, {"flag": 1}, {"text": 1}, {"share": "0.5"}, {"names": "a"}]
    for given in bent:
        with pytest.raises(SdditError):
            validated(Everything, given, table="t")


def test_every_wrong_key_of_a_table_is_reported_with_its_place() -> None:
    with pytest.raises(SdditError) as caught:
        validated(
            Everything, {"whole": "x", "inner": {"dpth": 1}}, table="t.u", where=lambda key: f"<{key}>", fix="see"
        )
    assert [(p.what, p.where) for p in caught.value.problems] == [
        ("'t.u.whole' is of the wrong kind", "<t.u.whole>"),
        ("unknown key 't.u.inner.dpth'", "<t.u.inner.dpth>"),
    ]
    assert caught.value.problems[1].fix == "rename the key, or run  see"
