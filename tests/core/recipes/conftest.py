"""Recipes of toys on a host of their own: no plugin of ours, and nothing is built."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from sddit.errors import Problem, SdditError
from sddit.plugins.host import Host
from sddit.recipes.recipe import Recipe
from sddit.recipes.resolve import resolve
from sddit.testing.toys.plugin import toy_host

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

[train]
steps = 10
batch = 8
"""

Write = Callable[[str, str], Path]
Resolve = Callable[..., Recipe]
Problems = Callable[..., list[Problem]]


@pytest.fixture(scope="session")
def host() -> Host:
    """Toys of every kind, the core's own components, and `extras.py` next to this file."""
    made = toy_host()
    made.use(["./extras.py"], Path(__file__).parent)
    return made


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """`write("a/b.toml", text)` in a folder of its own, which is the current one."""
    monkeypatch.chdir(tmp_path)

    def to(name: str, text: str) -> Path:
        path = Path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    return to


@pytest.fixture
def base() -> str:
    """Return the smallest complete recipe: every slot without a default, in 26 lines."""
    return BASE


@pytest.fixture
def resolved(write: Write, host: Host) -> Resolve:
    """`resolved(text, "key=value", ...)`: a recipe of the base, or of another text."""

    def of(text: str = BASE, *overrides: str) -> Recipe:
        return resolve(write("recipe.toml", text), overrides, host=host)

    return of


@pytest.fixture
def problems(resolved: Resolve) -> Problems:
    """Return the problems of a recipe that must not resolve."""

    def of(text: str = BASE, *overrides: str) -> list[Problem]:
        with pytest.raises(SdditError) as caught:
            resolved(text, *overrides)
        return list(caught.value.problems)

    return of
