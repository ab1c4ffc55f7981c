"""Test Adan against its paper, and after a restart."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import sddit
from sddit.training.optimization import group_numbers
from sddit.training.state import changed_numbers, join_optimizer, split_optimizer

pytest.importorskip("pytorch_optimizer", reason="Adan comes with the package pytorch-optimizer")

RATE, BETAS, EPS = 0.01, (0.98, 0.92, 0.99), 1e-8


def adan(weights: Tensor) -> torch.optim.Optimizer:
    build = sddit.build("optimizers", "adan", {"lr": RATE})
    optimizer: torch.optim.Optimizer = build(
        [{"params": [weights], "lr_scale": 1.0, "head": False}], torch.device("cpu")
    )
    return optimizer


def gradients(count: int) -> Tensor:
    return torch.randn(count, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def step(optimizer: torch.optim.Optimizer, weights: Tensor, gradient: Tensor) -> None:
    weights.grad = gradient.clone()
    optimizer.step()


def test_steps_by_hand() -> None:
    """Algorithm 1 of arXiv:2208.06677 with bias-corrected averages, in the code's convention for the betas."""
    weights = torch.ones(5, dtype=torch.float64, requires_grad=True)
    optimizer = adan(weights)
    theirs = torch.ones(5, dtype=torch.float64)
    m, v, n = (torch.zeros(5, dtype=torch.float64) for _ in range(3))
    last = None
    for k, g in enumerate(gradients(4), start=1):
        step(optimizer, weights, g)
        change = torch.zeros_like(g) if last is None else g - last
        b1, b2, b3 = BETAS
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * change
        n = b3 * n + (1 - b3) * (g + b2 * change) ** 2
        root = (n / (1 - b3**k)).sqrt() + EPS
        theirs = theirs - RATE * (m / (1 - b1**k) + b2 * v / (1 - b2**k)) / root
        last = g
    torch.testing.assert_close(weights.detach(), theirs, rtol=1e-12, atol=0)
    assert not torch.allclose(weights.detach(), torch.ones(5, dtype=torch.float64), rtol=1e-3)


def test_a_restored_optimizer_continues_its_step_count() -> None:
    weights = torch.ones(5, dtype=torch.float64, requires_grad=True)
    optimizer = adan(weights)
    built_with = group_numbers(optimizer)
    for g in gradients(3):
        step(optimizer, weights, g)
    tensors, numbers = split_optimizer(optimizer)
    held = {"0": [name.partition(".")[2] for name in tensors]}
    ended = []
    for counted in (changed_numbers(optimizer, built_with), [{}]):
        again = weights.detach().clone().requires_grad_()
        restored = adan(again)
        join_optimizer(restored, {k: t.clone() for k, t in tensors.items()}, numbers, held, counted)
        for g in gradients(6)[3:]:
            step(restored, again, g)
        ended.append(again.detach())
    for g in gradients(6)[3:]:
        step(optimizer, weights, g)
    assert torch.equal(ended[0], weights.detach())
    assert not torch.equal(ended[1], weights.detach())
