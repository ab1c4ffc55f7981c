"""Test that the check of every kernel holds, and that it detects slightly wrong kernels."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from sddit.interfaces import AttentionParams, CheckContext, CheckSkipped, Component, Measurement
from sddit.plugins.hookspecs import Registries
from sddit_flash import register_attention
from sddit_flash.checks import agreement
from sddit_flash.kernels import Eager, same_group
from sddit_flash.params import EagerParams


def component(name: str) -> Component[Any]:
    registries = Registries()
    register_attention(registries.attention)
    return registries.attention.get(name)


def measured(found: Component[Any]) -> list[Measurement]:
    return list(agreement(CheckContext(component=found)))


@pytest.mark.parametrize("name", ["eager", "sdpa"])
def test_checks_hold(name: str) -> None:
    rows = measured(component(name))
    assert [row.what.partition(",")[0] for row in rows] == [
        f"{precision}: {what}" for precision in ("fp32", "bf16", "fp64") for what in ("values", "gradients")
    ]
    assert all(row.holds for row in rows)


class OneBias(Eager):
    """Apply the bias of the first image to all images."""

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, *, bias: Tensor | None = None, **more: Any) -> Tensor:
        return super().__call__(q, k, v, bias=bias[:1] if bias is not None and bias.ndim == 4 else bias, **more)


class StuckBias(Eager):
    """Return no gradient for a bias."""

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, *, bias: Tensor | None = None, **more: Any) -> Tensor:
        return super().__call__(q, k, v, bias=None if bias is None else 0 * bias + bias.detach(), **more)


class NoScale(Eager):
    def __call__(self, q: Tensor, *rest: Tensor, **more: Any) -> Tensor:
        return super().__call__(q * math.sqrt(q.shape[-1] + 1e-3) / math.sqrt(q.shape[-1]), *rest, **more)


class Soft(Eager):
    """Let groups attend a little to each other."""

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, *, groups: Tensor | None = None, bias: Any = None) -> Tensor:
        if groups is not None:
            wall = torch.where(same_group(groups), 0.0, -12.0).to(q)
            bias = wall if bias is None else bias + wall
        return super().__call__(q, k, v, bias=bias)


class NotANumber(Eager):
    """Return NaN in the gradient for q at N = 64, as cuDNN's kernel did."""

    def __call__(self, q: Tensor, *rest: Tensor, **more: Any) -> Tensor:
        if q.shape[2] == 64 and q.requires_grad:
            q = q * 1.0
            q.register_hook(lambda gradient: gradient * math.nan)
        return super().__call__(q, *rest, **more)


@pytest.mark.parametrize(
    ("kernel", "what"),
    [
        (OneBias, "fp64: values, worst at N = 49, bias of each image"),
        (StuckBias, "fp64: gradients, worst at N = 16, bias of the heads"),
        (NoScale, "fp64: values"),
        (Soft, "fp64: values"),
        (NotANumber, "fp64: gradients, worst at N = 64, no options"),
    ],
)
def test_a_wrong_kernel_is_detected(kernel: Callable[..., Any], what: str) -> None:
    failing = [row.what for row in measured(replace(component("eager"), factory=kernel)) if not row.holds]
    assert any(found.startswith(what) for found in failing), failing


def test_unsupported_options_are_not_measured() -> None:
    class Plain(AttentionParams):
        """Support neither bias nor groups nor gradients."""

        @property
        def backward_devices(self) -> tuple[str, ...]:
            return ()

    def plain(params: AttentionParams) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
        return lambda q, k, v: Eager(EagerParams())(q, k, v)

    rows = measured(replace(component("eager"), params=Plain, factory=plain))
    assert len(rows) == 3
    assert all(row.holds and "values, worst at" in row.what and "no options" in row.what for row in rows)


def test_checks_that_cannot_run_are_skipped_with_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CheckSkipped, match="runs only on cuda: --device cuda"):
        measured(component("xformers"))
    with pytest.raises(CheckSkipped, match="--full"):
        measured(component("flex"))
