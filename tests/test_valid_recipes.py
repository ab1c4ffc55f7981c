"""Recipes that pass the checks can be built, trained for a step and sampled; others are refused with a code."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from functools import cache
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin

import pytest
import torch
from annotated_types import Ge, Gt, Interval, Le, Lt
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import AfterValidator, BaseModel
from pydantic.fields import FieldInfo

from sddit.errors import SdditError
from sddit.generation import generate, of_classes
from sddit.recipes.recipe import Recipe
from sddit.recipes.resolve import resolve
from sddit.training.build import build_session
from sddit.training.loop import train
from sddit.training.session import Session
from sddit.value_schedules import Between, Ramp

MORE = float(os.environ.get("SDDIT_FUZZ", "1"))
GROUNDS = ["quickstart", "digits/dit", "digits/dit-ddpm", "digits/dit-flow", "digits/maskdit", "digits/mdt"]
GROUNDS += ["digits/mdtv2-edm", "digits/sd-dit-c2", "digits/sra", "digits/sra2"]
SMALL = ["train.steps=10", "train.batch=4", "train.threads=1", "optimizer.warmup=0", "sampler.steps=2"]
SMALL += ["evaluate.samples=4", "evaluate.features=[]", "backbone.width=16", "backbone.heads=2"]
DECODER = ["backbone.depth=2", "backbone.decoder.depth=1", "backbone.decoder.width=16", "backbone.decoder.heads=2"]
LEFT_ALONE = {
    "dataset.path", "train.threads", "train.compile", "train.deterministic", "evaluate.features", "evaluate.weights",
    "evaluate.samples", "train.steps",
}  # fmt: skip
"""What needs files, compiles for minutes, changes the process, or only says how long."""
MOST = 24  # of a whole number that says how large something is


class Once:
    """Ends the training after a step."""

    def logged(self, session: Session, row: Mapping[str, float]) -> None:
        pass

    def stepped(self, session: Session) -> None:
        raise StopIteration


def one_step(recipe: Recipe) -> None:
    """Build, take a step, and draw two images with what it left."""
    session = build_session(recipe, torch.device("cpu"))
    try:
        train(session, Once())
    except StopIteration:
        assert session.step == 1
    classes = recipe.shapes.num_classes
    request = of_classes([0], 2, classes, recipe.seed)
    x = generate(session.weights(recipe.evaluate.weights), session.schedule, recipe, request)
    images = session.dataset.to_images(x)
    assert images.shape[0] == 2 and images.dtype == torch.uint8


def values(annotation: Any, metadata: tuple[Any, ...] = ()) -> st.SearchStrategy[Any]:
    """Values of a type within its bounds, the bounds themselves often; `nothing()` for what is left alone."""
    origin, inside = get_origin(annotation), get_args(annotation)
    low, high = bounds(metadata)
    if origin is Annotated:
        return values(inside[0], (*inside[1:], *metadata))
    if origin is Literal:
        return st.sampled_from(inside)
    if origin is tuple:
        items = [values(one) for one in inside if one is not Ellipsis]
        if any(item.is_empty for item in items):
            return st.nothing()
        return st.lists(items[0], max_size=3) if Ellipsis in inside else st.tuples(*items).map(list)
    if annotation is bool:
        return st.booleans()
    if annotation is int:
        least = int(max(low, 0)) if low is not None else 0
        most = min(int(high), MOST) if high is not None else MOST
        return st.integers(least, max(least, most))
    if annotation is float:
        return st.floats(low if low is not None else -1e3, high if high is not None else 1e3, allow_subnormal=False)
    if annotation is Ramp:
        ends = values(float, metadata)
        moments = st.one_of(st.integers(0, 12), st.floats(0, 1))
        shapes = st.sampled_from(["linear", "cosine", "step"])
        whole = {"start": ends, "end": ends}
        return st.fixed_dictionaries(whole, optional={"shape": shapes, "from": moments, "until": moments})
    if inside:
        return st.one_of(*(values(one, metadata) for one in inside if one is not NoneType))
    return st.nothing()


def bounds(metadata: tuple[Any, ...]) -> tuple[float | None, float | None]:
    low: float | None = None
    high: float | None = None
    for note in metadata:
        match note:
            case FieldInfo():
                low, high = bounds(tuple(note.metadata))
            case Interval():
                low, high = bounds(tuple(note))
            case Ge(ge=edge) | Gt(gt=edge):
                low = float(edge)  # type: ignore[arg-type]
            case Le(le=edge) | Lt(lt=edge):
                high = float(edge)  # type: ignore[arg-type]
            case AfterValidator(func=Between() as between):
                low, high = between.low, None if between.high == float("inf") else between.high
    return low, high


@cache
def settings_of(ground: str) -> dict[str, st.SearchStrategy[Any]]:
    """Every setting of a recipe that can be varied, by dotted key."""
    recipe = resolve(ground, small(ground))
    tables: dict[str, BaseModel] = {
        slot: getattr(recipe, slot).params
        for slot in (
            "backbone",
            "noise_schedule",
            "pair_sampler",
            "attention",
            "dataset",
            "sampler",
            "guidance",
            "optimizer",
        )
    }
    tables |= {f"loss.{label}": chosen.params for label, chosen in recipe.losses.items()}
    tables |= {f"ema.{label}": average for label, average in recipe.ema.items()}
    tables |= {"train": recipe.train, "teacher": recipe.teacher, "evaluate": recipe.evaluate}
    found = {}
    for table, model in tables.items():
        for name, info in type(model).model_fields.items():
            key = f"{table}.{info.alias or name}"
            strategy = values(info.annotation, tuple(info.metadata))
            if key not in LEFT_ALONE and not strategy.is_empty:
                found[key] = strategy
    return found


def small(ground: str) -> list[str]:
    """The ground with a network of two or three narrow blocks."""
    if "mdt" in ground:
        return [*SMALL, "backbone.depth=3", "backbone.decoder_depth=1"]
    if ground.startswith("digits/sra"):
        return [*SMALL, "backbone.depth=4"]
    if ground.startswith("digits/dit"):
        return [*SMALL, "backbone.depth=2"]
    heads = ["loss.discrimination.prototypes=8"] if ground in ("quickstart", "digits/sd-dit-c2") else []
    return [*SMALL, *DECODER, *heads]


def toml(value: Any) -> str:
    """A value as an override writes it."""
    if isinstance(value, dict):
        return f"{{ {', '.join(f'{key} = {toml(inner)}' for key, inner in value.items())} }}"
    if isinstance(value, list):
        return f"[{', '.join(map(toml, value))}]"
    return json.dumps(value)


@settings(
    max_examples=int(30 * MORE),
    derandomize=MORE == 1,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(st.data())
def test_what_passes_the_checks_builds_and_steps(data: st.DataObject) -> None:
    ground = data.draw(st.sampled_from(GROUNDS))
    known = settings_of(ground)
    chosen = data.draw(st.lists(st.sampled_from(sorted(known)), min_size=1, max_size=3, unique=True))
    changes = {key: toml(data.draw(known[key])) for key in chosen}
    overrides = [w for w in small(ground) if w.partition("=")[0] not in changes] + [
        f"{k}={v}" for k, v in changes.items()
    ]
    try:
        recipe = resolve(ground, overrides)
        one_step(recipe)
    except SdditError as refused:
        assert refused.exit_status != 1


@pytest.mark.parametrize("ground", GROUNDS)
def test_most_settings_of_a_ground_are_varied(ground: str) -> None:
    known = settings_of(ground)
    assert len(known) > 35
    assert {"optimizer.lr", "backbone.mlp_ratio", "train.micro_batch", "sampler.steps"} <= known.keys()


def test_a_recipe_that_passes_and_cannot_be_built_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: what a check forgets, the step finds."""
    recipe = resolve("digits/dit", small("digits/dit"))
    one_step(recipe)
    monkeypatch.setattr(type(recipe.backbone.params), "check", lambda *_: ())
    forgotten = resolve("digits/dit", [*small("digits/dit"), "backbone.mlp_ratio=1e-9"])
    with pytest.raises(Warning, match="zero-element"):
        one_step(forgotten)
