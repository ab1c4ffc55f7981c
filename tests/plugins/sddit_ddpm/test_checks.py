"""What `sddit-run verify` shows of DDPM holds here, and fails where what it measures is broken."""

from __future__ import annotations

from pathlib import Path

import pytest

from sddit.interfaces import CheckContext, Measurement
from sddit.plugins import registry
from sddit.registry import load_attribute
from sddit.verify.published import folders
from sddit_ddpm import loss, samplers
from sddit_ddpm.chain import Chain

COMPONENTS = [("noise_schedules", "ddpm"), ("losses", "hybrid"), ("samplers", "ancestral"), ("samplers", "ddim")]
FIXTURES = folders(Path(__file__).parents[2] / "fixtures" / "published")


def measured(kind: str, name: str) -> list[Measurement]:
    """All that the checks of one component measure."""
    component = registry(kind).get(name)
    context = CheckContext(component=component, fixtures=FIXTURES)
    return [found for _, path in component.checks for found in load_attribute(path)(context)]


@pytest.mark.parametrize(("kind", "name"), COMPONENTS)
def test_every_check_holds(kind: str, name: str) -> None:
    found = measured(kind, name)
    assert len(found) >= 4
    assert [m for m in found if not m.holds] == []


def test_a_broken_chain_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Chain, "betas", property(lambda chain: tuple(1.001 * s**2 / (1 + s**2) for s in chain.levels)))
    assert any("tables/25/betas" in m.what and not m.holds for m in measured("noise_schedules", "ddpm"))
    assert any("variance of the samples" in m.what and not m.holds for m in measured("samplers", "ancestral"))


def test_a_broken_likelihood_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss, "HALF_STEP", 1.01 / 255)
    broken = [m.what for m in measured("losses", "hybrid") if not m.holds]
    assert "sum of the likelihoods of all values, from 1" in broken
    assert "ddpm_a: train/loss" in broken


def test_a_broken_sampler_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samplers, "bounded", lambda x0, clip: 1.001 * x0)
    assert len([m for m in measured("samplers", "ddim") if not m.holds]) >= 4
