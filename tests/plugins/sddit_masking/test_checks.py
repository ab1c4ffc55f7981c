"""The checks that `sddit-run verify` runs: each holds here, and notices what it is there for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from sddit.interfaces import CheckContext, Measurement, NotHereError
from sddit.plugins.hookspecs import Registries
from sddit.verify.published import folders
from sddit_masking import checks, loss, register_backbones

Check = Callable[[CheckContext], Iterator[Measurement]]


def failing(check: Check) -> list[str]:
    """What does not hold; skips the test where the stored numbers are not here."""
    registries = Registries()
    register_backbones(registries.backbones)
    try:
        rows = list(check(CheckContext(component=registries.backbones.get("mdt"), fixtures=folders(None))))
    except NotHereError as absent:
        pytest.skip(str(absent))
    assert rows
    return [row.what for row in rows if not row.holds]


@pytest.mark.parametrize("check", [checks.target, checks.published_reconstruction, checks.published_mdt])
def test_it_holds_here(check: Check) -> None:
    assert failing(check) == []


def test_a_loss_on_visible_patches_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss, "hidden_mean", lambda values, visible: values.gather(1, visible).mean(dim=1))
    assert failing(checks.target) == [
        "fraction of images whose loss changes with a visible pixel",
        "fraction of images whose loss changes with a hidden pixel",
    ]
    assert failing(checks.published_reconstruction) == ["maskdit_a: loss/mae", "maskdit_a: loss/mae_no_norm"]


def test_the_biased_variance_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def biased(patches: Tensor) -> Tensor:
        variance, mean = torch.var_mean(patches, dim=-1, keepdim=True, correction=0)
        return (patches - mean) / (variance + 1e-6).sqrt()

    for module in (loss, checks):
        monkeypatch.setattr(module, "normalize_patches", biased)
    assert failing(checks.target) == ["variance of a normalized patch, from 1"]
    assert failing(checks.published_reconstruction) == ["maskdit_a: loss/mae"]


def test_targets_that_are_swapped_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = checks.build_loss
    swap = {"clean": "noised", "noised": "clean"}
    monkeypatch.setattr(checks, "build_loss", lambda **s: honest(**{**s, "target": swap[s.get("target", "noised")]}))
    assert {"loss of the noisy image itself", "target clean: loss of the clean image itself"} <= set(
        failing(checks.target)
    )


def test_another_network_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = checks.network

    def moved(*arguments: Any) -> Any:
        made = honest(*arguments)
        with torch.no_grad():
            next(made.blocks[1].parameters()).flatten()[3] += 1e-4
        return made

    monkeypatch.setattr(checks, "network", moved)
    assert failing(checks.published_mdt) == [
        f"{name}_a: {what}" for name in ("mdtv2", "mdtv1") for what in ("unmasked", "masked")
    ]
