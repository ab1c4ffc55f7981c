"""The core's checks hold here, and each fails when what it watches is broken."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sddit.diffusion.draws import Draws
from sddit.errors import SdditError
from sddit.interfaces import CheckContext, Measurement, NotHereError
from sddit.recipes import search as lookup
from sddit.training.student import Objective
from sddit.verify import core
from sddit.verify import leak_detector as leaks


def run(check: Callable[[CheckContext], Any]) -> list[Measurement]:
    return list(check(CheckContext()))


def failing(check: Callable[[CheckContext], Any]) -> list[str]:
    return [found.what for found in run(check) if not found.holds]


@pytest.mark.parametrize("check", [core.draws, core.masks, core.gradients, core.checkpoints])
def test_it_holds_here(check: Callable[[CheckContext], Any]) -> None:
    assert run(check)
    assert failing(check) == []


def test_a_wrong_generator_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sddit.diffusion.draws.ROUNDS", 9)
    assert failing(core.draws) == ["words that are not Philox's published answers"]


def test_draws_of_a_whole_batch_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def of_the_batch(self: Draws, purpose: str, shape: tuple[int, ...] = (), **_: Any) -> torch.Tensor:
        return torch.randn(len(self._ids), *shape, generator=torch.Generator().manual_seed(0))

    monkeypatch.setattr(Draws, "normal", of_the_batch)
    assert failing(core.draws) == ["numbers that depend on the batch around them"]


def test_numbers_of_another_spread_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    normal = Draws.normal
    monkeypatch.setattr(Draws, "normal", lambda self, *a, **k: 1.05 * normal(self, *a, **k))
    assert failing(core.draws) == ["normal numbers: variance, in standard errors"]


def test_truncated_token_counts_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sddit.diffusion.masking.keep_count", lambda tokens, ratio: int(tokens * (1 - ratio)))
    assert "token counts that are not floor(L (1 - r)), L to 256, r in hundredths" in failing(core.masks)


def test_masks_that_favour_a_token_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def favouring(draws: Any, purpose: str, grid: tuple[int, int]) -> torch.Tensor:
        scores: torch.Tensor = draws.uniform(purpose, (grid[0] * grid[1],))
        scores[:, 7] *= 0.8
        return scores

    monkeypatch.setattr("sddit.diffusion.masking._random", favouring)
    assert failing(core.masks) == ["random: share of each token, in standard errors"]


def test_a_sum_in_place_of_a_mean_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = Objective.reduce
    monkeypatch.setattr(
        Objective, "reduce", lambda self, label, value, view, share: honest(self, label, value, view, 1.0)
    )
    assert [what for what in failing(core.gradients) if what.startswith("fp64")] == [
        f"fp64: 8 images at once and {micro} at a time" for micro in (1, 2, 4)
    ]


def test_a_forgotten_teacher_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sddit.training.ema.Teacher.restore", lambda self, tensors: None)
    assert failing(core.checkpoints) == [
        "tensors of the restored run that differ",
        "tensors that differ two steps later",
    ]


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
    with pytest.raises(NotHereError, match="--full"):
        run(core.leaks)
    found = list(core.leaks(CheckContext(full=True)))
    assert len(found) == 3
    assert all(m.holds and m.what.startswith("maskdit-xl2-tune, narrow and on noise: ") for m in found)


def test_a_leak_is_found_without_the_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shipping("imagenet256/dit-xl2.toml", tmp_path, monkeypatch)
    right = leaks.Scene.views

    def pasted(self: leaks.Scene, *given: Any) -> Any:
        views = right(self, *given)
        for view in views.values():
            view.x = view.x.clone()
            view.x[:, :, 0, 0] = view.x0[:, :, 0, 0]
        return views

    monkeypatch.setattr(leaks.Scene, "views", pasted)
    failed = [m.what for m in core.leaks(CheckContext(full=True)) if not m.holds]
    assert "dit-xl2, narrow and on noise: what the student is given, x_t held: x of view 'student'" in failed


def test_a_recipe_that_is_wrong_is_not_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = shipping("imagenet256/dit-xl2.toml", tmp_path, monkeypatch)
    file.write_text(file.read_text().replace("size =", "sise ="), encoding="utf-8")
    with pytest.raises(SdditError, match="sise"):
        list(core.leaks(CheckContext(full=True)))


def test_an_unchecked_manifest_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(core, "verify_sealed", lambda place: None)
    assert failing(core.checkpoints) == ["share of flipped bits that are noticed"]
