"""Test settings of the standard plugin in recipes: data paths, classifiers, and AdamW keys without effect."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from sddit import hookimpl
from sddit.errors import Problem, SdditError
from sddit.interfaces import Loss
from sddit.plugins.host import Host
from sddit.plugins.registry import Registry
from sddit.recipes.recipe import Recipe
from sddit.recipes.resolve import changed, resolve
from sddit.testing.toys import plugin as toys
from sddit.testing.toys.params import ToyLossParams

BASE = """\
seed = 3

[backbone]
name = "toy"
hidden = 8

[noise_schedule]
name = "toy"

[pair_sampler]
name = "toy"

[loss.denoise]
name = "toy"

[dataset]
name = "toy"

[sampler]
name = "toy"
steps = 4

[guidance]
name = "toy"

[attention]
name = "toy"

[train]
steps = 10
batch = 8
"""
TOY_SCORES = "evaluate.features=['toy']"
Write = Callable[[str, str], Path]
Resolve = Callable[..., Recipe]
Problems = Callable[..., list[Problem]]


@pytest.fixture(scope="session")
def host() -> Host:
    """Return a host of toys and the standard plugin. The loss `unpriced` states no cost, so it may have heads."""
    made = Host(builtins=("sddit",))
    made.add("toy", toys)
    made.add("extras", sys.modules[__name__])
    return made


class UnpricedParams(ToyLossParams):
    """A loss that states no cost."""

    def cost(self, *_: Any, **__: Any) -> None:
        return None


@hookimpl
def register_losses(registry: Registry[Loss]) -> None:
    registry.add("unpriced", "nowhere:Built", params=UnpricedParams, summary="States no cost.")


@pytest.fixture
def base() -> str:
    """Return the recipe of toys that the tests change."""
    return BASE


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """`write("a/b.toml", text)` in an empty folder, the current one."""
    monkeypatch.chdir(tmp_path)

    def to(name: str, text: str) -> Path:
        path = Path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    return to


@pytest.fixture
def resolved(write: Write, host: Host) -> Resolve:
    """`resolved(text, "key=value", ...)` is the recipe of a text."""
    return lambda text=BASE, *overrides: resolve(write("recipe.toml", text), overrides, host=host)


@pytest.fixture
def problems(resolved: Resolve) -> Problems:
    """Return the problems of a recipe that must not resolve."""

    def of(text: str = BASE, *overrides: str) -> list[Problem]:
        with pytest.raises(SdditError) as caught:
            resolved(text, *overrides)
        return list(caught.value.problems)

    return of


def rerun(recipe: Recipe, write: Write, host: Host) -> Recipe:
    """Resolve the resolved recipe of a run again."""
    return resolve(write("runs/x/recipe.resolved.json", json.dumps(recipe.to_json(), indent=2)), host=host)


def test_the_default_optimizer_is_adamw(resolved: Resolve) -> None:
    recipe = resolved()
    assert recipe.optimizer.component.qualified == "sddit/adamw"
    assert recipe.plugin_digests.keys() >= {"toy", "sddit"}


def test_data_without_a_classifier_is_refused(problems: Problems, base: str) -> None:
    (found,) = problems(base, "evaluate.features=['classifier']")
    assert found.code == "SD-T910"
    assert "no classifier" in found.what
    assert found.where.endswith("(evaluate.features)")


@pytest.mark.parametrize(
    "overrides",
    [["tracker.a.name=toy", "tracker.b.name=csv"], ["dataset.name=digits", "evaluate.features=['classifier']"]],
)
def test_what_can_run_resolves(resolved: Resolve, base: str, overrides: list[str]) -> None:
    assert resolved(base, *overrides).path == Path("recipe.toml")


HEADS = ["loss.extra.name=unpriced", "optimizer.weight_decay=0"]


@pytest.mark.parametrize(
    ("overrides", "idle"),
    [
        (["optimizer.weight_decay=0.1", "optimizer.head_weight_decay=0.2"], {"optimizer.head_weight_decay"}),
        ([*HEADS, "optimizer.decay_all=true"], {"optimizer.decay_all"}),
        ([*HEADS, "optimizer.decay_all=true", "optimizer.head_weight_decay=0.2"], set()),
        (["optimizer.weight_decay=0.1", "optimizer.decay_all=true"], set()),
    ],
)
def test_a_key_of_adamw_without_effect_is_listed_and_warned_of(
    resolved: Resolve, base: str, overrides: list[str], idle: set[str]
) -> None:
    recipe = resolved(base, *overrides)
    assert set(recipe.idle) == idle
    assert {warning.split()[0] for warning in recipe.warnings} == idle


IMAGES = '[dataset]\nname = "folder"\nsize = 8\npath = '


def images(folder: str) -> Path:
    for name in ("cat", "dog"):
        for i in range(10):
            path = Path(folder, name, f"{i}.png")
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8), (20 * i, 5 * i, 100)).save(path)
    return Path(folder).absolute()


def test_a_path_is_relative_to_the_recipe_that_names_it(write: Write, base: str, host: Host) -> None:
    text = base.replace('[dataset]\nname = "toy"\n', f'{IMAGES}"../images"\n').replace("batch = 8", "batch = 2")
    adjacent, here = images("mine/images"), images("images")
    write("mine/recipes/parent.toml", text)
    child = write("mine/recipes/deeper/child.toml", 'extends = "../parent.toml"\nseed = 4\n')
    recipe = resolve(child, host=host)
    assert recipe.to_json()["dataset"]["path"] == str(adjacent)
    assert rerun(recipe, write, host).to_json() == recipe.to_json()
    typed = resolve(child, ["dataset.path=images"], host=host)
    assert typed.to_json()["dataset"]["path"] == str(here)
    assert changed(recipe, ["seed=5"], host=host).to_json()["dataset"]["path"] == str(adjacent)


def test_what_is_wrong_with_the_data_is_placed_and_shows_the_path_that_was_tried(
    problems: Problems, base: str, tmp_path: Path
) -> None:
    text = base.replace('[dataset]\nname = "toy"\n', f'{IMAGES}"images"\n')
    (missing,) = problems(text)
    assert missing.where == "recipe.toml:19 (dataset.path)"
    assert missing.got == str(tmp_path / "images")
    broken = images("images") / "cat" / "0.png"
    broken.write_bytes(b"no image")
    (found,) = problems(text)
    assert found.code == "SD-D301"
    assert found.where.startswith("recipe.toml:16 (")


@pytest.mark.parametrize("word", ["embedded", "system"])
def test_a_word_is_not_a_path(problems: Problems, resolved: Resolve, base: str, word: str) -> None:
    def source(name: str) -> str:
        return base.replace('[dataset]\nname = "toy"', f'[dataset]\nname = "fashion"\nsource = "{name}"')

    (relative,) = problems(source("nowhere"))
    assert str(Path("nowhere").absolute()) in relative.where
    try:
        assert resolved(source(word)).to_json()["dataset"]["source"] == word
    except SdditError as failure:  # Debian's package may be missing
        assert "/usr/share/datasets" in failure.problems[0].where


def test_the_remedy_of_a_small_folder_is_its_fraction_of_held_out_images(
    problems: Problems, base: str, tmp_path: Path
) -> None:
    for number in range(20):
        path = tmp_path / "images" / "one" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.linear_gradient("L").resize((8, 8)).rotate(90 * number).save(path)
    folder = base.replace(
        '[dataset]\nname = "toy"', f'[dataset]\nname = "folder"\npath = "{tmp_path}/images"\nsize = 8'
    )
    for holdout, remedy in ((0.0, "a higher dataset.holdout"), (0.9, "a lower dataset.holdout")):
        found = problems(folder, TOY_SCORES, f"dataset.holdout={holdout}", "train.batch=1", "evaluate.neighbours=9")
        assert [(p.code, p.fix) for p in found] == [("SD-T906", f"{remedy}, or evaluate.features=[]")]
        assert found[0].where.endswith("(dataset.holdout)")
