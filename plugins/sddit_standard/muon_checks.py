"""Check which parameters Muon orthogonalizes, and that AdamW updates the others (`sddit-run verify`)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from sddit.interfaces import CheckContext, Measurement
from sddit.testing import fixtures
from sddit_standard.muon import Muon
from sddit_standard.params import MuonParams

RATE = 0.01
STEPS = 3
MAX_DISTANCE = 0.5  # of a singular value from 1, as the authors of the iteration state it


def roles(context: CheckContext) -> Iterator[Measurement]:
    """Take steps with a matrix, with three that are stacked, with a table and with a bias."""
    plain: dict[str, Any] = {"adjust_lr_fn": "original", "momentum": 0.0, "nesterov": False}
    change = trained({"matrix": numbers(24, 16)}, 1, **plain)["matrix"] - numbers(24, 16)
    singular = torch.linalg.svdvals(change / (RATE * (24 / 16) ** 0.5))
    yield Measurement("singular values of an update: distance from 1", float((singular - 1).abs().max()), MAX_DISTANCE)
    spread = torch.linalg.svdvals(numbers(24, 16, key=7))
    ratio = float(spread.max() / spread.min())
    yield Measurement("control: those of the gradient, largest by smallest", ratio, 3, ">=")

    parts = {f"matrix {index}": part for index, part in enumerate(numbers(48, 16).chunk(3))}
    separate = torch.cat(list(trained(parts, STEPS).values()))
    stacked, joint = (
        trained({"stacked": numbers(48, 16)}, STEPS, split_qkv=split)["stacked"] for split in (True, False)
    )
    yield Measurement("stacked matrices: numbers unlike those of three", differing(stacked, separate), 0)
    yield Measurement("control: as one matrix they differ", differing(joint, separate), 1, ">=")

    others = {"embedding": numbers(8, 16), "vector": numbers(16)}
    ours = trained({"matrix": numbers(16, 16), **others}, STEPS)
    weights = {name: weight.clone().requires_grad_() for name, weight in others.items()}
    adamw = torch.optim.AdamW(weights.values(), lr=RATE, weight_decay=0.0, fused=True)
    advance(adamw, weights, STEPS)
    unlike = sum(differing(ours[name], weight.detach()) for name, weight in weights.items())
    yield Measurement("embedding and bias: numbers unlike those of AdamW", unlike, 0)


def trained(initial: Mapping[str, Tensor], steps: int, **settings: Any) -> dict[str, Tensor]:
    """Return weights after some steps of Muon; the first word of a name is its role, `stacked` for three matrices."""
    weights = {name: weight.clone().requires_grad_() for name, weight in initial.items()}
    groups = [
        {"params": [weight], "lr_scale": 1.0, "head": False, **role_of(name.partition(" ")[0])}
        for name, weight in weights.items()
    ]
    optimizer = Muon(MuonParams(**{"lr": RATE, **settings}))(groups, torch.device("cpu"))
    advance(optimizer, weights, steps)
    return {name: weight.detach() for name, weight in weights.items()}


def role_of(word: str) -> dict[str, object]:
    return {"role": "matrix", "stacked": 3} if word == "stacked" else {"role": word, "stacked": 1}


def advance(optimizer: torch.optim.Optimizer, weights: Mapping[str, Tensor], steps: int) -> None:
    """Take steps with the same made-up gradients for weights of the same names."""
    whole = {
        "stacked": numbers(48, 16, key=7),
        **{f"matrix {i}": p for i, p in enumerate(numbers(48, 16, key=7).chunk(3))},
    }
    for step in range(1, steps + 1):
        for name, weight in weights.items():
            weight.grad = step * whole.get(name, numbers(*weight.shape, key=7))
        optimizer.step()


def numbers(*shape: int, key: int = 1) -> Tensor:
    return fixtures.numbers(*shape, key=key)


def differing(one: Tensor, two: Tensor) -> float:
    """Count the numbers that are not bit-identical."""
    return float((one != two).sum())
