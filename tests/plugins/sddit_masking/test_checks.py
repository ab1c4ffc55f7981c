"""Test that the checks of `sddit-run verify` hold, and that each detects the errors it is meant for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from sddit.interfaces import CheckContext, CheckSkipped, Measurement
from sddit.plugins.hookspecs import Registries
from sddit.verify.published import folders
from sddit_masking import checks, loss, register_backbones

Check = Callable[[CheckContext], Iterator[Measurement]]


def failing(check: Check) -> list[str]:
    """Return the measurements that do not hold; skip the test if the stored numbers are missing."""
    registries = Registries()
    register_backbones(registries.backbones)
    try:
        rows = list(check(CheckContext(component=registries.backbones.get("mdt"), fixtures=folders(None))))
    except CheckSkipped as absent:
        pytest.skip(str(absent))
    assert rows
    return [row.what for row in rows if not row.holds]


@pytest.mark.parametrize("check", [checks.target, checks.published_reconstruction, checks.published_mdt])
def test_checks_hold(check: Check) -> None:
    assert failing(check) == []


def test_a_loss_on_visible_patches_is_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss, "hidden_mean", lambda values, visible: values.gather(1, visible).mean(dim=1))
    assert failing(checks.target) == [
        "fraction of images whose loss changes with a visible pixel",
        "fraction of images whose loss changes with a hidden pixel",
    ]
    assert failing(checks.published_reconstruction) == ["maskdit_a: loss/mae", "maskdit_a: loss/mae_no_norm"]


def test_a_biased_variance_is_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    def biased(patches: Tensor) -> Tensor:
        variance, mean = torch.var_mean(patches, dim=-1, keepdim=True, correction=0)
        return (patches - mean) / (variance + 1e-6).sqrt()

    for module in (loss, checks):
        monkeypatch.setattr(module, "normalize_patches", biased)
    assert failing(checks.target) == ["variance of a normalized patch, from 1"]
    assert failing(checks.published_reconstruction) == ["maskdit_a: loss/mae"]


def test_swapped_targets_are_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    original = checks.build_loss
    swap = {"clean": "noised", "noised": "clean"}
    monkeypatch.setattr(checks, "build_loss", lambda **s: original(**{**s, "target": swap[s.get("target", "noised")]}))
    assert {"loss of the noisy image itself", "target clean: loss of the clean image itself"} <= set(
        failing(checks.target)
    )


def test_a_different_network_is_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    original = checks.network

    def moved(*arguments: Any) -> Any:
        model = original(*arguments)
        with torch.no_grad():
            next(model.blocks[1].parameters()).flatten()[3] += 1e-4
        return model

    monkeypatch.setattr(checks, "network", moved)
    assert failing(checks.published_mdt) == [
        f"{name}_a: {what}" for name in ("mdtv2", "mdtv1") for what in ("unmasked", "masked")
    ]
