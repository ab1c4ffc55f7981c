"""Test that the checks of `sddit-run verify` hold, and that each detects the errors it is meant for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sddit.interfaces import CheckContext, CheckSkipped, Measurement
from sddit.training import ema
from sddit.verify.published import folders
from sddit_discrimination import checks
from sddit_discrimination.loss import Discrimination
from sddit_discrimination.pairs import PfOde

Check = Callable[[CheckContext], Iterator[Measurement]]


def failing(check: Check) -> list[str]:
    """Return the measurements that do not hold; skip the test if the stored numbers are missing."""
    try:
        rows = list(check(CheckContext(fixtures=folders(None))))
    except CheckSkipped as absent:
        pytest.skip(str(absent))
    assert rows
    return [row.what for row in rows if not row.holds]


@pytest.mark.parametrize("check", [checks.ray, checks.teacher, checks.entropies, checks.published_losses])
def test_checks_hold(check: Check) -> None:
    assert failing(check) == []


def test_a_pair_off_the_ray_is_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    original = PfOde.teacher_view

    def drifting(self: PfOde, *arguments: Any) -> Any:
        view = original(self, *arguments)
        view.x = view.x + 1e-6 * view.noise
        return view

    monkeypatch.setattr(PfOde, "teacher_view", drifting)
    assert failing(checks.ray) == [
        f"{mode}: distance of the teacher's view from the ray" for mode in ("fixed", "below", "offset", "same")
    ]


def test_a_teacher_noisier_than_its_student_is_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PfOde, "teacher_level", lambda self, sigma, draws: 1.5 * sigma)
    assert [what for what in failing(checks.ray) if "above" in what] == [
        "below: teacher's noise levels above the student's",
        "offset: teacher's noise levels above the student's",
    ]


def test_a_teacher_with_gradient_is_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its copies require gradients, and the targets are not detached."""
    monkeypatch.setattr(ema, "frozen_copy", lambda module: __import__("copy").deepcopy(module))

    def connected(self: Discrimination, ctx: Any, kind: str, logits: Tensor) -> Tensor:
        return torch.log_softmax(logits, dim=-1)

    monkeypatch.setattr(Discrimination, "targets", connected)
    assert "teacher's parameters with a gradient" in failing(checks.teacher)


def test_a_wrong_momentum_of_the_average_is_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    original = ema.ema_update_

    def eager(target: nn.Module, source: nn.Module, keep: float) -> None:
        original(target, source, keep - 1e-6)

    monkeypatch.setattr(ema, "ema_update_", eager)
    assert failing(checks.teacher) == ["the average after 5 updates, difference from its closed form"]


def test_a_wrong_temperature_is_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    original = checks.log_assignments
    monkeypatch.setattr(checks, "log_assignments", lambda logits, tau, c=None: original(logits, 1.0001 * tau, c))
    assert {"ssl_a: dino/loss_by_epoch", "ssl_a: dino/loss_sequence"} <= set(failing(checks.published_losses))


def test_an_unnormalized_softmax_is_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    original = checks.log_assignments
    monkeypatch.setattr(
        checks, "log_assignments", lambda logits, tau, c=None: original(logits, tau, c).to(logits) - 1e-4
    )
    assert failing(checks.entropies) == [
        "uniform student, from ln K",
        "the teacher's assignments, summed, from 1",
        "bf16 logits whose softmax is not in float32",
    ]


def test_a_wrong_momentum_of_the_center_is_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    original = Discrimination.after_step

    def slow(self: Discrimination, ctx: Any) -> None:
        before = {name: buffer.clone() for name, buffer in self.named_buffers()}
        original(self, ctx)
        for name, buffer in self.named_buffers():
            buffer.lerp_(before[name], 1e-3)

    monkeypatch.setattr(Discrimination, "after_step", slow)
    assert "ssl_a: dino/center_sequence" in failing(checks.published_losses)
