"""The checks that `sddit-run verify` runs: each holds here, and notices what it is there for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sddit.interfaces import CheckContext, Measurement, NotHereError
from sddit.training import ema as averages
from sddit.verify.published import folders
from sddit_discrimination import checks
from sddit_discrimination.loss import Discrimination
from sddit_discrimination.pairs import PfOde

Check = Callable[[CheckContext], Iterator[Measurement]]


def failing(check: Check) -> list[str]:
    """What does not hold; skips the test where the stored numbers are not here."""
    try:
        rows = list(check(CheckContext(fixtures=folders(None))))
    except NotHereError as absent:
        pytest.skip(str(absent))
    assert rows
    return [row.what for row in rows if not row.holds]


@pytest.mark.parametrize("check", [checks.ray, checks.teacher, checks.entropies, checks.published_losses])
def test_it_holds_here(check: Check) -> None:
    assert failing(check) == []


def test_a_pair_off_the_ray_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = PfOde.teacher_view

    def drifting(self: PfOde, *arguments: Any) -> Any:
        view = honest(self, *arguments)
        view.x = view.x + 1e-6 * view.noise
        return view

    monkeypatch.setattr(PfOde, "teacher_view", drifting)
    assert failing(checks.ray) == [
        f"{mode}: distance of the teacher's view from the ray" for mode in ("fixed", "below", "offset", "same")
    ]


def test_a_teacher_above_its_student_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PfOde, "teacher_level", lambda self, sigma, draws: 1.5 * sigma)
    assert [what for what in failing(checks.ray) if "above" in what] == [
        "below: teacher's noise levels above the student's",
        "offset: teacher's noise levels above the student's",
    ]


def test_a_teacher_that_learns_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its copies take a gradient, and the targets are not cut off."""
    monkeypatch.setattr(averages, "frozen_copy", lambda module: __import__("copy").deepcopy(module))

    def connected(self: Discrimination, ctx: Any, kind: str, logits: Tensor) -> Tensor:
        return torch.log_softmax(logits, dim=-1)

    monkeypatch.setattr(Discrimination, "targets", connected)
    assert "teacher's parameters with a gradient" in failing(checks.teacher)


def test_an_average_of_another_momentum_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = averages.follow

    def eager(target: nn.Module, source: nn.Module, keep: float) -> None:
        honest(target, source, keep - 1e-6)

    monkeypatch.setattr(averages, "follow", eager)
    assert failing(checks.teacher) == ["the average after 5 updates, difference from its closed form"]


def test_a_temperature_that_is_off_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = checks.log_assignments
    monkeypatch.setattr(checks, "log_assignments", lambda logits, tau, c=None: honest(logits, 1.0001 * tau, c))
    assert {"ssl_a: dino/loss_by_epoch", "ssl_a: dino/loss_sequence"} <= set(failing(checks.published_losses))


def test_a_softmax_that_does_not_add_up_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = checks.log_assignments
    monkeypatch.setattr(checks, "log_assignments", lambda logits, tau, c=None: honest(logits, tau, c).to(logits) - 1e-4)
    assert failing(checks.entropies) == [
        "uniform student, from ln K",
        "the teacher's assignments, summed, from 1",
        "bf16 logits whose softmax is not in float32",
    ]


def test_a_centre_of_another_momentum_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = Discrimination.after_step

    def slow(self: Discrimination, ctx: Any) -> None:
        before = {name: buffer.clone() for name, buffer in self.named_buffers()}
        honest(self, ctx)
        for name, buffer in self.named_buffers():
            buffer.lerp_(before[name], 1e-3)

    monkeypatch.setattr(Discrimination, "after_step", slow)
    assert "ssl_a: dino/center_sequence" in failing(checks.published_losses)
