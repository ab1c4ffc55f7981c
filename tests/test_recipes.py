"""Every shipped recipe resolves, plans and trains; no key of one can be misspelt unnoticed."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from sddit.errors import SdditError
from sddit.progress import Progress
from sddit.recipes.plan import plan
from sddit.recipes.resolve import resolve
from sddit.run import run
from sddit.training.run_folder import read_metrics

RECIPES = Path(__file__).parents[1] / "recipes"
RUNNABLE = sorted(path for path in RECIPES.rglob("*.toml") if path.parent.name != "base")
SMALL = ["train.steps=2", "train.batch=16", "train.log_every=1", "optimizer.warmup=0", "evaluate.samples=20"]
SMALL += ["evaluate.previews=1", "evaluate.per_class=1", "evaluate.features=[]", "sampler.steps=2"]


def names(paths: list[Path]) -> list[str]:
    return [str(path.relative_to(RECIPES)) for path in paths]


@pytest.mark.parametrize("path", RUNNABLE, ids=names(RUNNABLE))
def test_a_recipe_plans_without_warnings_or_idle_keys(path: Path) -> None:
    recipe = resolve(path)
    assert recipe.warnings == ()
    assert recipe.idle == ()
    planned = plan(recipe)
    assert planned.not_stated == ()
    assert planned.flops_per_image is not None
    assert planned.flops_per_image > 0


@pytest.mark.parametrize("path", RUNNABLE, ids=names(RUNNABLE))
def test_a_recipe_trains_two_steps_and_samples(path: Path, tmp_path: Path) -> None:
    result = run(resolve(path, SMALL), out=tmp_path, device="cpu", progress=Progress())
    rows = read_metrics(result.folder / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2]
    assert rows[0]["loss"] > 0
    assert result.report.is_file()


@pytest.mark.parametrize("path", RUNNABLE, ids=names(RUNNABLE))
def test_the_plan_counts_the_parameters_that_are_built(path: Path) -> None:
    from sddit.training.session import build_session

    recipe = resolve(path, SMALL)
    planned, session = plan(recipe), build_session(recipe, torch.device("cpu"))
    assert planned.backbone_parameters == sum(p.numel() for p in session.student.backbone.parameters())
    assert sum(filter(None, planned.heads_parameters.values())) == sum(
        p.numel() for p in session.student.terms.parameters()
    )


def keys(table: dict[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Every key of a recipe that names a setting; labels and schedules' own keys aside."""
    for name, value in table.items():
        if isinstance(value, dict):
            yield from keys(value, (*path, name))
        elif name not in ("extends", "name"):
            yield (*path, name)


@pytest.mark.parametrize("path", RUNNABLE, ids=names(RUNNABLE))
def test_every_misspelt_key_is_named_with_its_nearest(path: Path, tmp_path: Path) -> None:
    text = path.read_text()
    folder = tmp_path / "recipes"
    (folder / "base").mkdir(parents=True)
    for base in (RECIPES / "base").glob("*.toml"):
        (folder / "base" / base.name).write_text(base.read_text())
    misspelt = folder / path.name
    for *_, key in keys(tomllib.loads(text)):
        wrong = f"{key[:-1]}x" if len(key) > 3 else f"{key}x"
        misspelt.write_text(text.replace(f"{key} =", f"{wrong} =", 1))
        with pytest.raises(SdditError) as found:
            resolve(misspelt)
        assert wrong in str(found.value), key
