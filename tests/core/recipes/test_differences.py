"""Test the differences between two resolved recipes, and their classes."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from sddit.plugins.host import Host
from sddit.recipes.differences import by_leaf, differences
from sddit.recipes.recipe import Recipe
from sddit.testing.toys.params import ToyOptimizerParams

Resolve = Callable[..., Recipe]


def test_equal_recipes_do_not_differ(resolved: Resolve) -> None:
    assert differences(resolved().to_json(), resolved().to_json()) == []


@pytest.mark.parametrize(
    ("override", "found"),
    [
        ("train.log_every=3", ("train.log_every", 10, 3, "free")),
        ("evaluate.batch=3", ("evaluate.batch", 256, 3, "free")),
        ("train.steps=20", ("train.steps", 10, 20, "numeric")),
        ("seed=4", ("seed", 3, 4, "numeric")),
        ("optimizer.lr=1", ("optimizer.lr", 1e-4, 1.0, "numeric")),
        ("pair_sampler.mask_ratio=0.5", ("pair_sampler.mask_ratio", 0.0, 0.5, "numeric")),
        ("teacher.momentum={start=0.5,end=1,shape='cosine'}", ("teacher.momentum.start", 0.996, 0.5, "numeric")),
        ("loss.denoise.weight=0.5", ("loss.denoise.weight", 1.0, 0.5, "numeric")),
        ("backbone.depth=3", ("backbone.depth", 2, 3, "structural")),
    ],
)
def test_every_difference_has_its_class(
    resolved: Resolve, base: str, override: str, found: tuple[str, object, object, str]
) -> None:
    assert differences(resolved().to_json(), resolved(base, override).to_json()) == [found]


@pytest.mark.parametrize(
    ("override", "keys"),
    [
        ("loss.other.name=toy", {"loss.other": "structural"}),
        ("ema.main.decay=0.5", {"ema.main": "structural", "evaluate.weights": "numeric"}),
        ("tracker.t.name=toy", {"tracker.t.name": "free"}),
        ("dataset.channels=3", {"dataset.channels": "numeric", "data.image": "structural"}),
        ("dataset.classes=4", {"dataset.classes": "numeric", "data.classes": "structural"}),
        ("dataset.images=30", {"dataset.images": "numeric", "data.fingerprint": "numeric"}),
    ],
)
def test_what_decides_the_tensors_is_structural(
    resolved: Resolve, base: str, override: str, keys: dict[str, str]
) -> None:
    one, two = resolved().to_json(), resolved(base, override).to_json()
    for old, new in ((one, two), (two, one)):
        found = {key: kind for key, _, _, kind in differences(old, new)}
        if override.startswith("dataset"):
            found.pop("data.fingerprint" if "data.fingerprint" not in keys else "", None)
        assert found == keys


def test_another_component_under_a_label_is_structural(resolved: Resolve, base: str) -> None:
    found = differences(resolved().to_json(), resolved(base, "loss.denoise.name=unpriced").to_json())
    assert ("loss.denoise.name", "toy/toy", "extras/unpriced", "structural") in found


def test_a_difference_runs_both_ways(resolved: Resolve, base: str) -> None:
    one, two = resolved().to_json(), resolved(base, "seed=4", "loss.b.name=toy").to_json()
    forth = {(key, str(old), str(new)) for key, old, new, _ in differences(one, two)}
    back = {(key, str(new), str(old)) for key, old, new, _ in differences(two, one)}
    assert forth == back


def test_a_table_of_only_one_recipe_is_split_into_settings() -> None:
    table = {"name": "x", "unset": None, "ramp": {"start": 1}, "empty": []}
    reported = [("name", "x"), ("ramp.start", 1), ("empty", [])]
    assert by_leaf([("loss.a", None, table)]) == [(f"loss.a.{key}", None, value) for key, value in reported]
    assert by_leaf([("loss.a", table, None)]) == [(f"loss.a.{key}", value, None) for key, value in reported]
    single = [("seed", 1, 2), ("train.ema", None, 0.5), ("teacher.momentum", [1], None)]
    assert by_leaf(single) == single
    assert by_leaf(by_leaf([("loss.a", None, table)])) == by_leaf([("loss.a", None, table)])


def test_marked_keys_of_a_component(resolved: Resolve, base: str, monkeypatch: pytest.MonkeyPatch, host: Host) -> None:
    """A free key is free; a key marked `omit_default` differs from none only with another value."""
    monkeypatch.setattr("sddit.recipes.differences.host", lambda: host)
    tables = resolved(base).to_json()
    without = {**tables, "optimizer": {k: v for k, v in tables["optimizer"].items() if k != "weight_decay"}}
    other = resolved(base, "optimizer.weight_decay=0.5").to_json()
    assert differences(without, tables) == [("optimizer.weight_decay", None, 0.0, "numeric")]
    field = ToyOptimizerParams.model_fields["weight_decay"]
    monkeypatch.setattr(field, "json_schema_extra", {"omit_default": True})
    assert differences(without, tables) == differences(tables, without) == []
    assert differences(without, other) == [("optimizer.weight_decay", None, 0.5, "numeric")]
    monkeypatch.setattr(field, "json_schema_extra", {"free": True})
    assert differences(tables, other) == [("optimizer.weight_decay", 0.0, 0.5, "free")]
    assert resolved(base).run_id == resolved(base, "optimizer.weight_decay=0.5").run_id
