"""Test that the checks of DDPM in `sddit-run verify` hold, and fail for broken components."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sddit.interfaces import CheckContext, Measurement
from sddit.interfaces.component import load_attribute
from sddit.plugins.host import registry
from sddit.verify.published import folders
from sddit_ddpm import chain, loss, params, samplers
from sddit_ddpm.chain import Chain
from sddit_ddpm.loss import Hybrid

COMPONENTS = [("noise_schedules", "ddpm"), ("losses", "hybrid"), ("samplers", "ancestral"), ("samplers", "ddim")]
FIXTURES = folders(Path(__file__).parents[2] / "fixtures" / "published")


def measured(kind: str, name: str) -> list[Measurement]:
    """Return all measurements of the checks of one component."""
    component = registry(kind).get(name)
    context = CheckContext(component=component, fixtures=FIXTURES)
    return [found for _, path in component.checks for found in load_attribute(path)(context)]


@pytest.mark.parametrize(("kind", "name"), COMPONENTS)
def test_checks_hold(kind: str, name: str) -> None:
    found = measured(kind, name)
    assert len(found) >= 4
    assert [m for m in found if not m.holds] == []


def test_a_broken_chain_is_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Chain, "betas", property(lambda chain: tuple(1.001 * s**2 / (1 + s**2) for s in chain.levels)))
    assert any("tables/25/betas" in m.what and not m.holds for m in measured("noise_schedules", "ddpm"))
    assert any("variance of the samples" in m.what and not m.holds for m in measured("samplers", "ancestral"))


def test_a_broken_likelihood_is_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss, "HALF_STEP", 1.01 / 255)
    broken = [m.what for m in measured("losses", "hybrid") if not m.holds]
    assert "sum of the likelihoods of all values, from 1" in broken
    assert "ddpm_a: train/loss" in broken


def test_a_broken_sampler_is_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samplers, "clipped", lambda x0, clip: 1.001 * x0)
    assert len([m for m in measured("samplers", "ddim") if not m.holds]) >= 4


def broken(kind: str, name: str) -> list[str]:
    return [m.what for m in measured(kind, name) if not m.holds]


def test_a_different_cosine_offset_is_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    def offset(count: int) -> list[float]:
        abars = [math.cos((i / count + 0.009) / 1.009 * math.pi / 2) ** 2 for i in range(count + 1)]
        return [min(1 - abar_next / abar, 0.999) for abar, abar_next in pairwise(abars)]

    monkeypatch.setattr(params, "trained_chain", chain.trained_chain.__wrapped__)  # without its cache
    monkeypatch.setattr(chain, "cosine_betas", offset)
    assert broken("noise_schedules", "ddpm") == [
        "cosine: abar, from its closed form",
        "ddpm_a: tables/cosine/betas",
    ]


def test_averaging_instead_of_summing_views_is_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        Hybrid,
        "forward",
        lambda self, ctx, views, outputs: torch.stack(
            [self._value(ctx.schedule, view, outputs[name]) for name, view in views.items()]
        ).mean(0),
    )
    assert broken("losses", "hybrid") == ["sum: two equal views, from 2 of one"]


@pytest.mark.parametrize(("wrong", "where"), [("no clamp", "below"), ("no weight", "above"), ("gamma", "above")])
def test_a_wrong_clamp_is_detected(monkeypatch: pytest.MonkeyPatch, wrong: str, where: str) -> None:
    right = Hybrid._weight

    def weight(self: Hybrid, schedule: Any, t: Tensor) -> Tensor:
        ratio: Tensor = self.params.snr_gamma * schedule.scalings(t.double()).c_out ** 2
        if self.params.weighting == "none":
            return right(self, schedule, t)
        return {"no clamp": ratio, "no weight": torch.ones_like(ratio), "gamma": (1.2 * ratio).clamp(max=1)}[wrong]

    monkeypatch.setattr(Hybrid, "_weight", weight)
    assert f"weight where SNR is {where} gamma, relative" in broken("losses", "hybrid")
