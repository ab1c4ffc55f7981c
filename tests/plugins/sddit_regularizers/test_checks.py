"""Test that the checks of `sddit-run verify` hold, and that each detects the errors it is meant for."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sddit.diffusion.draws import KeyedDraws
from sddit.interfaces import CheckContext, Context, Measurement
from sddit_regularizers import checks, dispersive
from sddit_regularizers.contrastive import Contrastive
from sddit_regularizers.dispersive import Dispersive
from sddit_regularizers.diversity import Diversity
from sddit_regularizers.repulsor import Repulsor

Check = Callable[[CheckContext], Iterator[Measurement]]
VARIANTS = ["l2", "cosine", "hinge", "covariance"]


def failing(check: Check) -> list[str]:
    """Return the measurements that do not hold."""
    rows = list(check(CheckContext()))
    assert rows
    return [row.what for row in rows if not row.holds]


@pytest.mark.parametrize(
    "check",
    [
        checks.dispersion,
        checks.pairwise,
        checks.dispersive_ranks,
        checks.queue,
        checks.repulsion,
        checks.two_points,
        checks.partners,
        checks.diversity,
    ],
)
def test_checks_hold(check: Check) -> None:
    assert failing(check) == []


def test_a_sum_without_the_diagonal_is_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    def off_diagonal(ctx: Context, exponents: Tensor) -> Tensor:
        count = len(exponents)
        return ((exponents.exp().sum() - count) / (count * (count - 1))).log()

    monkeypatch.setattr(dispersive, "log_mean_exp", off_diagonal)
    assert [what for what in failing(checks.dispersion) if "orthogonal" in what] == [
        f"{variant}: orthogonal distant images, from -ln B" for variant in ("l2", "cosine")
    ]
    assert len(failing(checks.pairwise)) == 2


def test_a_distance_not_divided_by_the_dimension_is_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    original = Dispersive.features

    def undivided(self: Dispersive, tokens: Any) -> Tensor:
        z = original(self, tokens)
        return z * z.shape[1] ** 0.5 if self.params.variant == "l2" else z

    monkeypatch.setattr(Dispersive, "features", undivided)
    assert failing(checks.pairwise) == ["l2: difference from the sum over pairs"]


def test_covariances_with_the_variances_are_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    original = Dispersive.value

    def with_variances(self: Dispersive, ctx: Context, labels: Tensor, z: Tensor) -> Tensor:
        value = original(self, ctx, labels, z)
        return value + (z - z.mean(0)).square().mean(0).square().sum() if self.params.variant == "covariance" else value

    monkeypatch.setattr(Dispersive, "value", with_variances)
    assert failing(checks.pairwise) == ["covariance: difference from the sum over pairs"]
    assert failing(checks.dispersion) == [
        "covariance: uncorrelated channels, from 0",
        "covariance: equal channels, from 3 / 4",
    ]


def test_a_comparison_within_one_process_is_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    original = Dispersive.value

    def local(self: Dispersive, ctx: Context, labels: Tensor, z: Tensor) -> Tensor:
        alone = dataclasses.replace(ctx, gather=lambda x: x, mean=lambda x: x)
        return original(self, alone, labels, z)

    monkeypatch.setattr(Dispersive, "value", local)
    found = failing(checks.dispersive_ranks)
    assert {f"{variant}: value on two processes" for variant in VARIANTS} <= set(found)


@pytest.mark.parametrize("fault", ["oldest", "one rank", "in forward"])
def test_a_wrong_queue_is_detected(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    original = Repulsor.after_step

    def faulty(self: Repulsor, ctx: Context) -> None:
        with torch.no_grad():
            if fault == "oldest" and self.staged():
                new = torch.cat([ctx.gather(part) for part in self.staged()])
                self.queue.copy_(torch.cat([new, self.queue])[-len(self.queue) :])
                self.discard()
            elif fault == "one rank":
                original(self, dataclasses.replace(ctx, gather=lambda x: x))
            else:
                original(self, ctx)

    monkeypatch.setattr(Repulsor, "after_step", faulty)
    if fault == "in forward":
        repulsion = Repulsor.repulsion

        def eager(self: Repulsor, ctx: Context, projections: Tensor) -> Tensor:
            value = repulsion(self, ctx, projections)
            self.queue.data[:1].mul_(2)
            return value

        monkeypatch.setattr(Repulsor, "repulsion", eager)
    found = failing(checks.queue)
    expected = {
        "oldest": "step 1: queue, from the newest projections",
        "one rank": "queue of each of two processes, from that of one",
        "in forward": "rows that forward changed",
    }
    assert expected[fault] in found


def test_a_repulsor_without_a_center_is_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    def uncentered(self: Repulsor, ctx: Context, projections: Tensor) -> Tensor:
        cosines = F.normalize(projections, dim=1) @ F.normalize(self.queue, dim=1).T
        return ((cosines - 1) / self.params.temperature).exp().mean(dim=1).log()

    monkeypatch.setattr(Repulsor, "repulsion", uncentered)
    assert len(failing(checks.repulsion)) == 4


def test_a_wrong_temperature_of_the_repulsor_is_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    original = Repulsor.repulsion
    monkeypatch.setattr(Repulsor, "repulsion", lambda self, ctx, p: 1.0001 * original(self, ctx, p))
    assert "difference from the sum over the queue" in failing(checks.repulsion)


@pytest.mark.parametrize(
    ("factor", "expected"),
    [
        (-1.0, "any: gradient at the optimum, images with x > 0, in standard errors"),
        (2.0, "each image its own partner"),
    ],
)
def test_a_wrong_contrast_is_detected(factor: float, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    original = Contrastive.repulsion
    monkeypatch.setattr(Contrastive, "repulsion", lambda *arguments: factor * original(*arguments))
    assert any(what.startswith(expected) for what in failing(checks.two_points))


def test_wrong_partners_are_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    """Partners shifted by one: some are the image itself or one of its class."""
    original = Contrastive.partners

    def shifted(self: Contrastive, ctx: Context, view: Any) -> tuple[Tensor, Tensor]:
        partner, has_partner = original(self, ctx, view)
        return (partner + 1) % len(view.x), has_partner

    monkeypatch.setattr(Contrastive, "partners", shifted)
    found = failing(checks.partners)
    assert "any: partners that are the same image" in found
    assert "other_class: partners of the same or an unknown class" in found


def test_partners_of_unequal_frequency_are_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    original = KeyedDraws.uniform
    monkeypatch.setattr(KeyedDraws, "uniform", lambda self, *a, **k: original(self, *a, **k) ** 2)
    assert "any: frequency of a partner, in standard errors" in failing(checks.partners)


def test_a_wrong_diversity_is_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    original = Diversity.similarity
    monkeypatch.setattr(Diversity, "similarity", lambda self, h: original(self, h) * 1.5)
    assert failing(checks.diversity) == [
        "equal blocks, from 2/3",
        "orthogonal blocks, from minus a third of the variance",
    ]


def test_a_gate_that_does_not_jump_is_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    def continuous(self: Diversity, value: Tensor) -> Tensor:
        low, high = self.params.gate_low, self.params.gate_high
        return ((value - low) / (high - low)).clamp(0, 1)

    monkeypatch.setattr(Diversity, "gate_of", continuous)
    assert failing(checks.diversity) == ["gate at 0.5, from 0.8", "gate at 0.3, from 0.4"]
