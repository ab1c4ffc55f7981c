"""Test that the checks of every method hold here, and that each fails when what it watches is broken."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from sddit.diffusion import masking
from sddit.diffusion.draws import KeyedDraws
from sddit.interfaces import CheckContext, Measurement
from sddit.training import loop
from sddit.training.session import Session
from sddit_standard import checks


def run(check: Callable[[CheckContext], Any]) -> list[Measurement]:
    return list(check(CheckContext()))


def failing(check: Callable[[CheckContext], Any]) -> list[str]:
    return [found.what for found in run(check) if not found.holds]


@pytest.mark.parametrize("check", [checks.draws, checks.masks, checks.gradients, checks.checkpoints])
def test_it_holds_here(check: Callable[[CheckContext], Any]) -> None:
    assert run(check)
    assert failing(check) == []


def test_a_wrong_generator_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sddit.diffusion.draws.ROUNDS", 9)
    assert failing(checks.draws) == ["words that are not Philox's published answers"]


def test_draws_of_a_whole_batch_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def of_the_batch(self: KeyedDraws, purpose: str, shape: tuple[int, ...] = (), **_: Any) -> torch.Tensor:
        return torch.randn(len(self._ids), *shape, generator=torch.Generator().manual_seed(0))

    monkeypatch.setattr(KeyedDraws, "normal", of_the_batch)
    assert failing(checks.draws) == ["numbers that depend on the batch around them"]


def test_numbers_of_another_spread_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    normal = KeyedDraws.normal
    monkeypatch.setattr(KeyedDraws, "normal", lambda self, *a, **k: 1.05 * normal(self, *a, **k))
    assert failing(checks.draws) == ["normal numbers: variance, in standard errors"]


def test_truncated_token_counts_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sddit.diffusion.masking.keep_count", lambda tokens, ratio: int(tokens * (1 - ratio)))
    assert "token counts that are not floor(L (1 - r)), L to 256, r in hundredths" in failing(checks.masks)


def test_masks_that_favour_a_token_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def favouring(draws: Any, purpose: str, grid: tuple[int, int]) -> torch.Tensor:
        scores: torch.Tensor = draws.uniform(purpose, (grid[0] * grid[1],))
        scores[:, 7] *= 0.8
        return scores

    monkeypatch.setattr("sddit.diffusion.masking._random", favouring)
    assert failing(checks.masks) == ["random: fraction of each token, in standard errors"]


def test_masks_that_are_not_even_over_cells_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sddit.diffusion.masking._cells", masking._random)
    assert failing(checks.masks) == ["cells: cells of 2 x 2 tokens that do not show 2"]


def test_a_sum_in_place_of_a_mean_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = loop.micro_batches
    monkeypatch.setattr(
        loop, "micro_batches", lambda session: (replace(part, fraction=1.0) for part in honest(session))
    )
    assert [what for what in failing(checks.gradients) if what.startswith("fp64")] == [
        f"fp64: 8 images at once and {micro} at a time" for micro in (1, 2, 4)
    ]


def test_a_forgotten_teacher_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = Session.copies
    monkeypatch.setattr(Session, "copies", lambda self: {"ema": honest(self)["ema"]})
    assert failing(checks.checkpoints) == [
        "tensors of the restored run that differ",
        "tensors that differ two steps later",
    ]


def test_an_unchecked_manifest_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sddit.testing.sessions.verify", lambda checkpoint: None)
    assert failing(checks.checkpoints) == ["fraction of flipped bits that are noticed"]
