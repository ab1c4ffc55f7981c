"""The leak detector on shipped recipes whose data or plugins are missing."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sddit.errors import SdditError
from sddit.interfaces import CheckContext, CheckSkipped, Measurement
from sddit.recipes import search as lookup
from sddit.verify import leak_detector as leaks
from sddit.verify import shipped_recipes


def run(check: Callable[[CheckContext], Any]) -> list[Measurement]:
    return list(check(CheckContext()))


RECIPES = lookup.shipped()


def shipping(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One recipe alone is shipped, and what it extends."""
    shutil.copytree(RECIPES / "base", folder / "base")
    file = folder / name
    file.parent.mkdir()
    shutil.copy(RECIPES / name, file)
    monkeypatch.setattr("sddit.recipes.search.shipped", lambda: folder)
    return file


def test_a_recipe_without_its_data_is_left_to_a_full_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that also begins from weights that are not here."""
    shipping("imagenet256/maskdit-xl2-tune.toml", tmp_path, monkeypatch)
    with pytest.raises(CheckSkipped, match="--full"):
        run(shipped_recipes.leaks)
    found = list(shipped_recipes.leaks(CheckContext(full=True)))
    assert len(found) == 3
    assert all(m.holds and m.what.startswith("maskdit-xl2-tune, narrow and on noise: ") for m in found)


def test_a_leak_is_found_without_the_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shipping("imagenet256/dit-xl2.toml", tmp_path, monkeypatch)
    right = leaks.LeakScene.views

    def pasted(self: leaks.LeakScene, *given: Any) -> Any:
        views = right(self, *given)
        for view in views.values():
            view.x = view.x.clone()
            view.x[:, :, 0, 0] = view.x0[:, :, 0, 0]
        return views

    monkeypatch.setattr(leaks.LeakScene, "views", pasted)
    failed = [m.what for m in shipped_recipes.leaks(CheckContext(full=True)) if not m.holds]
    assert "dit-xl2, narrow and on noise: what the student is given, x_t held: x of view 'student'" in failed


def test_a_recipe_that_is_wrong_is_not_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = shipping("imagenet256/dit-xl2.toml", tmp_path, monkeypatch)
    file.write_text(file.read_text().replace("size =", "sise ="), encoding="utf-8")
    with pytest.raises(SdditError, match="sise"):
        list(shipped_recipes.leaks(CheckContext(full=True)))
