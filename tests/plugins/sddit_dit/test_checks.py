"""Test that the checks of `sddit-run verify` hold, and that each detects the errors it is meant for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from sddit.interfaces import CheckContext, CheckSkipped, Measurement, Tokens
from sddit.plugins.hookspecs import Registries
from sddit.verify.published import folders
from sddit_dit import backbone, checks, frame, register_backbones
from sddit_dit.backbone import DiT
from sddit_dit.decoder_input import SplitInput

Check = Callable[[CheckContext], Iterator[Measurement]]


def failing(check: Check) -> list[str]:
    """Return the measurements that do not hold; skip the test if the stored numbers are missing."""
    registries = Registries()
    register_backbones(registries.backbones)
    try:
        rows = list(check(CheckContext(component=registries.backbones.get("dit"), fixtures=folders(None))))
    except CheckSkipped as absent:
        pytest.skip(str(absent))
    assert rows
    return [row.what for row in rows if not row.holds]


@pytest.mark.parametrize(
    "check",
    [
        checks.spans,
        checks.fill,
        checks.heads,
        checks.encoder_gradient,
        checks.published_dit,
        checks.published_maskdit,
    ],
)
def test_checks_hold(check: Check) -> None:
    assert failing(check) == []


def test_hidden_tokens_leaking_into_the_encoder_are_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mix a little of all tokens into the visible ones."""
    original = backbone.gather_tokens
    monkeypatch.setattr(
        backbone, "gather_tokens", lambda e, index: original(e + 1e-12 * e.mean(dim=1, keepdim=True), index)
    )
    assert {what.partition(": ")[2] for what in failing(checks.spans)} >= {
        "encoder numbers that a hidden pixel changes",
        "outputs that change when all tokens are listed as visible",
    }


def test_a_network_ignoring_its_input_fails_the_control(monkeypatch: pytest.MonkeyPatch) -> None:
    original = DiT.embed
    monkeypatch.setattr(DiT, "embed", lambda self, x: original(self, torch.zeros_like(x)))
    assert {what.partition(": ")[2] for what in failing(checks.spans)} == {
        "control, those that a visible pixel changes"
    }


def test_a_different_fill_is_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    original = SplitInput.forward

    def swapped(self: SplitInput, h: Tensor, e: Tensor, visible: Tensor | None, act: Tensor) -> Tensor:
        return original(self, h, e.flip(1), visible, act)

    monkeypatch.setattr(SplitInput, "forward", swapped)
    assert failing(checks.fill) == ["hidden positions that are not their own embedded token"]


def test_a_different_network_is_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    def rounded(*arguments: Any) -> Any:
        model = original(*arguments)
        with torch.no_grad():
            model.blocks[1].mlp.up.bias[3] += 1e-5
        return model

    original = checks.network
    monkeypatch.setattr(checks, "network", rounded)
    assert failing(checks.published_dit) == [
        f"dit_a: {name}" for name in ("forward", "grad_x", "mid/block1", "mid/block2")
    ]
    assert failing(checks.published_maskdit) == ["maskdit_a: raw/eval_unmasked", "maskdit_a: raw/train_masked"]


def test_a_head_at_another_block_is_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    """It reads the block after its own, whose number its settings do not have."""
    original = DiT.finish_heads

    def late(self: DiT, read: dict[int, Tokens], act: Tensor) -> dict[str, Tensor]:
        later = {n: Tokens(self.blocks[n](tokens.patch, act), tokens.index) for n, tokens in read.items()}
        return original(self, later, act)

    monkeypatch.setattr(DiT, "finish_heads", late)
    assert failing(checks.heads) == ["outputs of the head that differ from a network that ends there"]


def test_a_head_that_changes_the_output_is_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    original = DiT.forward

    def mixed(self: DiT, *given: Any, **more: Any) -> Any:
        raw, found, taps = original(self, *given, **more)
        return raw + sum(1e-12 * head for head in found.values()), found, taps

    monkeypatch.setattr(DiT, "forward", mixed)
    assert failing(checks.heads) == ["outputs that an auxiliary head changes"]


def test_a_head_that_predicts_hidden_tokens_is_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    original = frame.scatter_tokens
    monkeypatch.setattr(frame, "scatter_tokens", lambda tokens, index, into: original(tokens, index, into + 1))
    assert failing(checks.heads) == ["hidden tokens that a head in the encoder predicts"]


def test_a_gradient_that_bypasses_the_factor_is_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hidden positions keep the whole gradient: only what has as few tokens as the encoder's output is scaled."""
    original = backbone.scale_gradient

    def partial(x: Tensor, factor: float) -> Tensor:
        return original(x, factor) if x.shape[1] < 16 else x

    monkeypatch.setattr(backbone, "scale_gradient", partial)
    assert failing(checks.encoder_gradient) == [
        "0.25: gradients of the encoder that are not 0.25 of the full ones",
        "none: gradients of the encoder that are not 0 of the full ones",
    ]


def test_a_factor_on_the_output_is_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backbone, "scale_gradient", lambda x, factor: factor * x)
    assert {"0.25: outputs that differ", "none: outputs that differ"} <= set(failing(checks.encoder_gradient))
