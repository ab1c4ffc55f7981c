"""Test that the checks of `sddit-run verify` hold, and that each detects the errors it is meant for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from sddit.interfaces import CheckContext, CheckSkipped, Measurement, Tokens
from sddit.testing import teacher as testing_teacher
from sddit.verify.published import folders
from sddit_alignment import checks, loss, pairs
from sddit_alignment.loss import Align
from sddit_alignment.pairs import OffsetPair

Check = Callable[[CheckContext], Iterator[Measurement]]


def failing(check: Check) -> list[str]:
    """Return the measurements that do not hold; skip the test if the stored numbers are missing."""
    try:
        rows = list(check(CheckContext(fixtures=folders(None))))
    except CheckSkipped as absent:
        pytest.skip(str(absent))
    assert rows
    return [row.what for row in rows if not row.holds]


@pytest.mark.parametrize(
    "check", [checks.times, checks.same_pass, checks.teacher, checks.clean, checks.published_alignment]
)
def test_checks_hold(check: Check) -> None:
    assert failing(check) == []


def test_a_teacher_earlier_than_the_minimum_is_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    original = OffsetPair.earlier
    monkeypatch.setattr(OffsetPair, "earlier", lambda self, *given: original(self, *given) - 1e-6)
    assert [what for what in failing(checks.times) if "below" in what] == [
        "linear: teachers below t_min",
        "native: teachers below t_min",
    ]


def test_a_teacher_with_other_labels_and_noise_is_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    original = pairs.teacher_view

    def other(*given: Any) -> Any:
        view = original(*given)
        view.labels, view.x = view.labels + 1, view.x + 1e-6 * view.noise
        return view

    monkeypatch.setattr(pairs, "teacher_view", other)
    found = failing(checks.times)
    assert "linear: labels that differ" in found
    assert "native: the teacher's image, from the student's noise" in found


def test_a_target_with_gradient_is_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    def connected(self: Align, name: str, views: Any, outputs: Any) -> Iterator[Tokens]:
        yield from self.read_targets(name, views, outputs)

    monkeypatch.setattr(Align, "targets", connected)
    assert "gradient of the blocks after the tap" in failing(checks.same_pass)


def test_a_detached_student_is_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    original = loss.widened

    def detached(tokens: Tokens, view: Any) -> Tokens:
        own = original(tokens, view)
        return Tokens((own.patch.detach() + 0 * own.patch), own.index)

    monkeypatch.setattr(loss, "widened", detached)
    assert failing(checks.same_pass) == ["control: gradient of the blocks up to the tap"]


def test_a_cosine_over_another_axis_is_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    original = loss.cosines
    monkeypatch.setattr(loss, "cosines", lambda student, target, dim: original(student, target, dim=1))
    assert "distance, from a computation by hand" in failing(checks.same_pass)
    assert "no offset, momentum 0, one tap: from 1 - cos(g(h), h)" in failing(checks.teacher)
    monkeypatch.setattr(loss, "cosines", lambda student, target, dim: original(student, target, dim=-1))
    assert "align_a: sra/cos_mean" in failing(checks.published_alignment)


def test_a_permutation_without_effect_is_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss.targets, "permute_tokens", lambda tokens, order: tokens)
    assert failing(checks.same_pass) == ["tokens permuted: distance of identical taps"]


def test_a_teacher_that_trains_is_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    original = testing_teacher.Teacher.update

    def trained(self: Any, *given: Any) -> None:
        original(self, *given)
        self.backbone.requires_grad_(True)

    monkeypatch.setattr(testing_teacher.Teacher, "update", trained)
    assert failing(checks.teacher) == ["teacher's parameters with a gradient"]


def test_a_wrong_beta_is_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    original = torch.nn.functional.smooth_l1_loss

    def wider(*given: Tensor, beta: float, **keys: Any) -> Tensor:
        return original(*given, beta=1.001 * beta, **keys)

    monkeypatch.setattr(loss.F, "smooth_l1_loss", wider)
    assert failing(checks.clean) == ["errors below beta: from MSE / (2 beta), relative"]
    assert "align_a: sra/sml1_mean" in failing(checks.published_alignment)


def test_patches_in_another_order_are_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    original = loss.patchify
    monkeypatch.setattr(loss, "patchify", lambda x, grid: original(x, grid).flip(1))
    assert "distance with the exact inverse as head" in failing(checks.clean)
