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
from sddit_dit import backbone, checks, register_backbones
from sddit_dit.backbone import DiT
from sddit_dit.decoder_input import SplitInput

Check = Callable[[CheckContext], Iterator[Measurement]]


def failing(check: Check) -> list[str]:
    """What does not hold; skips the test where the stored numbers are not here."""
    registries = Registries()
    register_backbones(registries.backbones)
    try:
        rows = list(check(CheckContext(component=registries.backbones.get("dit"), fixtures=folders(None))))
    except NotHereError as absent:
        pytest.skip(str(absent))
    assert rows
    return [row.what for row in rows if not row.holds]


@pytest.mark.parametrize("check", [checks.spans, checks.fill, checks.published_dit, checks.published_maskdit])
def test_it_holds_here(check: Check) -> None:
    assert failing(check) == []


def test_a_hidden_token_in_the_encoder_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Visible tokens that carry a little of all others."""
    honest = backbone.gather_tokens
    monkeypatch.setattr(
        backbone, "gather_tokens", lambda e, index: honest(e + 1e-12 * e.mean(dim=1, keepdim=True), index)
    )
    assert {what.partition(": ")[2] for what in failing(checks.spans)} >= {
        "encoder numbers that a hidden pixel changes",
        "outputs that change when all tokens are listed as visible",
    }


def test_a_network_that_sees_nothing_proves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = DiT.embed
    monkeypatch.setattr(DiT, "embed", lambda self, x: honest(self, torch.zeros_like(x)))
    assert {what.partition(": ")[2] for what in failing(checks.spans)} == {
        "control, those that a visible pixel changes"
    }


def test_another_fill_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = SplitInput.forward

    def swapped(self: SplitInput, h: Tensor, e: Tensor, visible: Tensor | None, act: Tensor) -> Tensor:
        return honest(self, h, e.flip(1), visible, act)

    monkeypatch.setattr(SplitInput, "forward", swapped)
    assert failing(checks.fill) == ["hidden positions that are not their own embedded token"]


def test_another_network_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def rounded(*arguments: Any) -> Any:
        made = honest(*arguments)
        with torch.no_grad():
            made.blocks[1].mlp.up.bias[3] += 1e-5
        return made

    honest = checks.network
    monkeypatch.setattr(checks, "network", rounded)
    assert failing(checks.published_dit) == [
        f"dit_a: {name}" for name in ("forward", "grad_x", "mid/block1", "mid/block2")
    ]
    assert failing(checks.published_maskdit) == ["maskdit_a: raw/eval_unmasked", "maskdit_a: raw/train_masked"]
