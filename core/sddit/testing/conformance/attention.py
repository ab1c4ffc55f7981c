"""Check what holds for every attention kernel."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sddit.testing import fixtures
from sddit.testing.case import Case
from sddit.testing.toys.network import ToyAttention
from sddit.testing.toys.params import ToyAttentionParams

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp64": torch.float64}
TOLERANCE = {"fp32": 1e-5, "bf16": 3e-2, "fp64": 1e-12}
HEADS, TOKENS, WIDTH = 3, 7, 8


def examine(case: Case) -> None:
    """Compare a kernel with the softmax written out, in each precision and with each extra argument that it takes."""
    device = next((name for name in case.params.devices if name == "cpu" or torch.cuda.is_available()), None)
    if device is None:
        return  # this machine cannot run it
    with case.trying("it was built"):
        kernel = case.build()
        for precision in case.params.dtypes:
            for label, extra in extras(case.params).items():
                with case.trying(f"it computed in {precision} with {label or 'q, k and v'}"):
                    shown = f"in {precision}" + (f" with {label}" if label else "")
                    trains = device in case.params.backward_devices
                    compare(case, kernel, arguments(extra, device, trains), precision, shown)


def extras(params: Any) -> dict[str, dict[str, Tensor]]:
    """Return the optional arguments to pass next to q, k and v, by a label for messages."""
    found: dict[str, dict[str, Tensor]] = {"": {}}
    if params.takes_bias:
        for label, shape in (("heads", (HEADS,)), ("B, heads", (2, HEADS))):
            bias = fixtures.numbers(*shape, TOKENS, TOKENS, key=9, dtype=torch.float64)
            found[f"bias [{label}, N, N]"] = {"bias": bias}
    if params.takes_groups:
        found["groups"] = {"groups": torch.tensor([[0, 0, 0, 1, 1, 1, 1], [0, 1, 0, 1, 0, 1, 2]])}
    return found


def arguments(extra: dict[str, Tensor], device: str, trains: bool) -> dict[str, Tensor]:
    """Return q, k, v and an extra argument, float64; leaves of the graph if the kernel trains."""
    given = dict(extra)
    for key, name in enumerate("qkv"):
        given[name] = fixtures.numbers(2, HEADS, TOKENS, WIDTH, key=key, dtype=torch.float64)
    return {name: x.to(device).requires_grad_(trains and x.is_floating_point()) for name, x in given.items()}


def compare(case: Case, kernel: Any, given: dict[str, Tensor], precision: str, shown: str) -> None:
    """Compare values, and gradients if the kernel has them."""
    dtype = DTYPES[precision]
    low = dict(given)
    for name, x in given.items():
        if x.is_floating_point():
            low[name] = x.detach().to(dtype, copy=True).requires_grad_(x.requires_grad)
    expected = called(ToyAttention(ToyAttentionParams()), given)
    out = called(kernel, low)
    if not case.shaped(out, tuple(expected.shape), f"what it returns {shown}"):
        return
    case.expect(out.dtype == dtype, f"it returns another dtype {shown}", got=out)
    near(case, out, expected, precision, f"it is not softmax(q k^T / sqrt(d) + bias) v {shown}")
    if expected.requires_grad:
        weight = fixtures.numbers(*out.shape, key=10, dtype=torch.float64).to(out.device)
        torch.autograd.backward([(out.double() * weight).sum(), (expected * weight).sum()])
        for name, x in low.items():
            if x.requires_grad and case.expect(x.grad is not None, f"it has no gradient to {name} {shown}"):
                near(case, x.grad, given[name].grad, precision, f"its gradient to {name} is wrong {shown}")


def called(kernel: Any, given: dict[str, Tensor]) -> Tensor:
    """Call a kernel with q, k, v and the extra argument."""
    more = {name: value for name, value in given.items() if name not in "qkv"}
    out: Tensor = kernel(given["q"], given["k"], given["v"], **more)
    return out


def near(case: Case, found: Tensor | None, expected: Tensor | None, precision: str, what: str) -> None:
    """Note a difference beyond the tolerance, relative to max(1, |expected|)."""
    assert found is not None and expected is not None
    error = (found.double() - expected).abs().max().item() / max(1.0, expected.abs().max().item())
    bound = TOLERANCE[precision]
    case.expect(error <= bound, what, got=f"off by {error:.2g}", expect=f"at most {bound:g}")
