"""Check what holds for every attention kernel."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sddit.testing import fixtures as things
from sddit.testing.kit import Case, Findings
from sddit.testing.toys.network import ToyAttention
from sddit.testing.toys.params import ToyAttentionParams

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp64": torch.float64}
TOLERANCE = {"fp32": 1e-5, "bf16": 3e-2, "fp64": 1e-12}
HEADS, TOKENS, WIDTH = 3, 7, 8


def examine(case: Case, findings: Findings) -> None:
    """Compare a kernel with the softmax written out, in each precision and with each extra it says it serves."""
    device = next((name for name in case.params.devices if name == "cpu" or torch.cuda.is_available()), None)
    if device is None:
        return  # this machine cannot run it
    with findings.trying("it was built"):
        kernel = case.build()
        for precision in case.params.dtypes:
            for extra in extras(case):
                with findings.trying(f"it computed in {precision} with {extra or 'q, k and v'}"):
                    compare(case, kernel, precision, extra, device, findings)


def extras(case: Case) -> list[str]:
    """Return the optional arguments of an attention kernel, next to q, k and v."""
    bias = ["bias [heads, N, N]", "bias [B, heads, N, N]"] if case.params.takes_bias else []
    return ["", *bias, *(["groups"] if case.params.takes_groups else [])]


def inputs(extra: str, device: str) -> tuple[list[Tensor], dict[str, Tensor]]:
    """q, k, v and the extra, float64."""
    qkv = [things.numbers(2, HEADS, TOKENS, WIDTH, key=key, dtype=torch.float64).to(device) for key in range(3)]
    shape = (HEADS, TOKENS, TOKENS) if "[heads" in extra else (2, HEADS, TOKENS, TOKENS)
    if extra == "groups":
        return qkv, {"groups": torch.tensor([[0, 0, 0, 1, 1, 1, 1], [0, 1, 0, 1, 0, 1, 2]], device=device)}
    return qkv, {"bias": things.numbers(*shape, key=9, dtype=torch.float64).to(device)} if extra else {}


def compare(case: Case, kernel: Any, precision: str, extra: str, device: str, findings: Findings) -> None:
    """Values, and gradients where it has them."""
    shown = f"in {precision}" + (f" with {extra}" if extra else "")
    qkv, more = inputs(extra, device)
    trains = device in case.params.backward_devices
    given = {**dict(zip("qkv", qkv, strict=True)), **more}
    learned = [name for name in given if name != "groups"]
    exact = {name: x.clone().requires_grad_(trains) if name in learned else x for name, x in given.items()}
    low = {
        name: x.to(DTYPES[precision]).detach().requires_grad_(trains) for name, x in given.items() if name in learned
    }
    expected = called(ToyAttention(ToyAttentionParams()), exact)
    out = called(kernel, {**exact, **low})
    if not things.is_shaped(findings, out, tuple(expected.shape), f"what it returns {shown}"):
        return
    findings.expect(out.dtype == DTYPES[precision], f"it returns another dtype {shown}", got=things.shape_of(out))
    near(out, expected, precision, f"it is not softmax(q k^T / sqrt(d) + bias) v {shown}", findings)
    if trains:
        weight = things.numbers(*out.shape, key=10, dtype=torch.float64).to(device)
        torch.autograd.backward([(out.double() * weight).sum(), (expected * weight).sum()])
        for name in learned:
            if findings.expect(low[name].grad is not None, f"it has no gradient to {name} {shown}"):
                what = f"its gradient to {name} is wrong {shown}"
                near(low[name].grad, exact[name].grad, precision, what, findings)


def called(kernel: Any, given: dict[str, Tensor]) -> Tensor:
    """Return a kernel's value for q, k, v and what else there is."""
    more = {name: value for name, value in given.items() if name not in "qkv"}
    out: Tensor = kernel(given["q"], given["k"], given["v"], **more)
    return out


def near(found: Tensor | None, expected: Tensor | None, precision: str, what: str, findings: Findings) -> None:
    assert found is not None and expected is not None
    error = (found.double() - expected).abs().max().item() / max(1.0, expected.abs().max().item())
    findings.expect(
        error <= TOLERANCE[precision], what, got=f"off by {error:.2g}", expect=f"at most {TOLERANCE[precision]:g}"
    )
