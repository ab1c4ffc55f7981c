"""Compare every kernel with the formula."""

from __future__ import annotations

import shutil
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from sddit.plugins.hookspecs import Registries
from sddit_flash import register_attention
from sddit_flash.kernels import Eager, Flex, Sdpa, Xformers, softmax
from sddit_flash.params import EagerParams, FlexParams, SdpaParams, XformersParams

B, HEADS, WIDTH = 2, 3, 8


def qkv(n: int, dtype: torch.dtype = torch.float64, device: str = "cpu") -> list[Tensor]:
    """Return three slices [B, heads, n, d] of one projection, strided as in the backbone."""
    g = torch.Generator().manual_seed(5)
    packed = torch.randn(B, n, 3, HEADS, WIDTH, generator=g, dtype=torch.float64).to(device, dtype)
    return [part.detach().requires_grad_() for part in packed.permute(2, 0, 3, 1, 4).unbind(0)]


def options(kind: str, n: int) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(6)
    groups = torch.arange(n).expand(B, -1) % 3
    shared, each = torch.randn(HEADS, n, n, generator=g).double(), torch.randn(B, HEADS, n, n, generator=g).double()
    return {
        "plain": {},
        "groups": {"groups": groups},
        "shared bias": {"bias": shared},
        "bias": {"bias": each},
        "bias and groups": {"bias": each, "groups": groups},
    }[kind]


KINDS = ["plain", "groups", "shared bias", "bias", "bias and groups"]


def formula(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None, groups: Tensor | None = None) -> Tensor:
    """softmax(q k^T / sqrt(d) + bias) v over the tokens of the same group, sample by sample and token by token."""
    rows = []
    for b in range(q.shape[0]):
        for h in range(q.shape[1]):
            for i in range(q.shape[2]):
                scores = (k[b, h] * q[b, h, i]).sum(dim=1) / q.shape[3] ** 0.5
                if bias is not None:
                    scores = scores + (bias[h, i] if bias.ndim == 3 else bias[b, h, i])
                seen = torch.ones_like(scores, dtype=torch.bool) if groups is None else groups[b] == groups[b, i]
                weights = (scores[seen] - scores[seen].max()).exp()
                rows.append((weights / weights.sum()) @ v[b, h][seen])
    return torch.stack(rows).reshape(q.shape)


def with_gradients(kernel: Any, inputs: list[Tensor], **given: Tensor) -> list[Tensor]:
    out = kernel(*inputs, **given)
    leaves = [*inputs, *(t for t in given.values() if t.requires_grad)]
    return [
        out,
        *torch.autograd.grad((out * torch.linspace(-1, 1, out.numel()).reshape(out.shape).to(out)).sum(), leaves),
    ]


@pytest.mark.parametrize("n", [7, 17])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("kernel", [Eager(EagerParams()), Sdpa(SdpaParams())], ids=["eager", "sdpa"])
def test_forward_and_backward_follow_the_formula(kernel: Any, kind: str, n: int) -> None:
    """Rows shorter and longer than 16, which `eager` treats differently."""
    given = {key: t.requires_grad_(t.is_floating_point()) for key, t in options(kind, n).items()}
    for ours, exact in zip(
        with_gradients(kernel, qkv(n), **given), with_gradients(formula, qkv(n), **given), strict=True
    ):
        torch.testing.assert_close(ours, exact, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS[1:])
def test_each_option_has_an_effect(kind: str) -> None:
    plain, other = (Sdpa(SdpaParams())(*qkv(7), **options(k, 7)) for k in ("plain", kind))
    assert (plain - other).abs().max() > 0.01


def relative_biases(kind: str, n: int) -> dict[str, Tensor]:
    """Return options with biases as from a table of relative positions: [N, N, heads] seen as [heads, N, N]."""
    given = options(kind, n)
    if "bias" in given:
        given["bias"] = given["bias"].movedim(-3, -1).contiguous().movedim(-1, -3)
        assert not given["bias"].is_contiguous()
    return given


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n", [7, 17, 24])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 2e-2)]
)
def test_sdpa_agrees_with_eager_in_values_and_all_gradients(
    dtype: torch.dtype, tolerance: float, n: int, kind: str
) -> None:
    """Of strided q, k, v, of shared and own biases that are strided too, of lengths that are not a multiple of 8."""
    exact = {k: t.requires_grad_(t.is_floating_point()) for k, t in relative_biases(kind, n).items()}
    low = {k: t.detach().to(dtype).requires_grad_() if k == "bias" else t for k, t in relative_biases(kind, n).items()}
    reference = with_gradients(Eager(EagerParams()), qkv(n), **exact)
    found = with_gradients(Sdpa(SdpaParams()), qkv(n, dtype), **low)
    assert len(found) == len(reference) == (5 if "bias" in low else 4)
    for ours, theirs in zip(found, reference, strict=True):
        assert ours.dtype == dtype
        assert (ours.double() - theirs).norm() / theirs.norm() < tolerance


def test_a_bias_without_gradient_uses_the_fused_cpu_kernel() -> None:
    """It rejects the three axes of a shared bias."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    kernel, inputs = Sdpa(SdpaParams()), [t.detach() for t in qkv(17, torch.float32)]
    with sdpa_kernel(SDPBackend.MATH):
        plain = F.scaled_dot_product_attention(*inputs, attn_mask=options("shared bias", 17)["bias"].float())
    served: list[str] = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            served.append(func.name())
            return func(*args, **(kwargs or {}))

    with Watch():
        fused = kernel(*inputs, **options("shared bias", 17))
    assert any("flash_attention_for_cpu" in name for name in served)
    torch.testing.assert_close(fused, plain, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("n", [7, 40])
def test_softmax_is_computed_in_float32_or_wider(n: int) -> None:
    scores = torch.randn(2, 3, n, n)
    assert softmax(scores.bfloat16()).dtype == torch.float32
    assert torch.equal(softmax(scores.bfloat16()).sum(-1).round(decimals=5), torch.ones(2, 3, n))
    assert softmax(scores.double()).dtype == torch.float64
    torch.testing.assert_close(softmax(scores), torch.softmax(scores, dim=-1))


@pytest.mark.parametrize("kernel", [Eager(EagerParams()), Sdpa(SdpaParams())], ids=["eager", "sdpa"])
def test_bf16_in_and_out(kernel: Any) -> None:
    out = kernel(*qkv(17, torch.bfloat16), bias=options("bias", 17)["bias"].bfloat16())
    assert out.dtype == torch.bfloat16
    exact = formula(*qkv(17), bias=options("bias", 17)["bias"])
    assert (out.double() - exact).norm() / exact.norm() < 2e-2


# torch's compiler imports a module of torch that uses its own deprecated script_method
compiles = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")


@pytest.mark.slow
@compiles
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler for the CPU")
def test_flex_forward_agrees_with_eager_on_a_cpu() -> None:
    """One kernel object through several options, dtypes and lengths, as in a run. Slow: each is compiled."""
    flex, eager = Flex(FlexParams()), Eager(EagerParams())
    cases = [("plain", 17, torch.float32), ("bias and groups", 17, torch.float32), ("bias", 7, torch.bfloat16)]
    for kind, n, dtype in cases:
        inputs = [t.detach() for t in qkv(n, dtype)]
        one, two = (kernel(*inputs, **options(kind, n)) for kernel in (flex, eager))
        assert one.dtype == dtype
        tolerance = 1e-5 if dtype == torch.float32 else 3e-2
        torch.testing.assert_close(one.float(), two.float(), rtol=tolerance, atol=tolerance)


def test_what_each_kernel_declares() -> None:
    assert EagerParams().dtypes == SdpaParams().dtypes == ("fp32", "bf16", "fp64")
    assert FlexParams().backward_devices == XformersParams().devices == ("cuda",)
    serves = [(p.takes_bias, p.takes_groups) for p in (EagerParams(), SdpaParams(), FlexParams(), XformersParams())]
    assert serves == [(True, True), (True, True), (True, True), (True, False)]


class Ops:
    """Compute the formula with the interface of xformers' function: [B, N, heads, d], rows of a bias in 16 bytes."""

    @staticmethod
    def memory_efficient_attention(q: Tensor, k: Tensor, v: Tensor, attn_bias: Tensor | None) -> Tensor:
        if attn_bias is not None:
            assert attn_bias.dtype == q.dtype
            assert attn_bias.shape == (q.shape[0], q.shape[2], q.shape[1], k.shape[1])  # or it has no gradient
            assert attn_bias.stride(-1) == 1
            assert all(stride % 8 == 0 for stride in attn_bias.stride()[:-1])
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        return Eager(EagerParams())(q, k, v, bias=attn_bias).transpose(1, 2)


@pytest.fixture
def xformers(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return the kernel with a replacement of the package."""
    monkeypatch.setattr("sddit_flash.kernels.import_module", lambda name: {"xformers.ops": Ops}[name])
    registries = Registries()
    register_attention(registries.attention)
    component = registries.attention.get("xformers")
    assert component.requires == ("xformers",)
    assert component.load() is Xformers
    return component.build(XformersParams())


@pytest.mark.parametrize("n", [7, 16, 17])
@pytest.mark.parametrize("kind", ["plain", "shared bias", "bias"])
def test_xformers_gets_an_aligned_bias_and_its_gradient(xformers: Any, kind: str, n: int) -> None:
    given = {key: t.requires_grad_() for key, t in relative_biases(kind, n).items()}
    for ours, exact in zip(
        with_gradients(xformers, qkv(n), **given), with_gradients(formula, qkv(n), **given), strict=True
    ):
        torch.testing.assert_close(ours, exact, rtol=1e-12, atol=1e-12)


def test_xformers_does_not_support_groups(xformers: Any) -> None:
    with pytest.raises(ValueError, match="does not support groups"):
        xformers(*qkv(7), groups=options("groups", 7)["groups"])
