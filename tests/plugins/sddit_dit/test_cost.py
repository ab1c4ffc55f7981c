"""Compare the cost formulas with the FLOPs and activations counted by torch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from sddit.interfaces import Cost, Shapes, Tap
from sddit_dit.backbone import DiT
from sddit_flash.kernels import Sdpa
from sddit_flash.params import SdpaParams

IMAGE = (3, 8, 12)


def formula(model: DiT, num_kept: int, taps: tuple[Tap, ...] = (), output: bool = True) -> Cost:
    return model.params.cost(Shapes(IMAGE, 5, 2), num_kept=num_kept, taps=taps, output=output)


def inputs(num_kept: int) -> dict[str, Any]:
    """Return two images of 24 tokens each, `num_kept` of them visible."""
    visible = None if num_kept == 24 else torch.arange(num_kept).expand(2, -1)
    zeros = torch.zeros(2, dtype=torch.int64)
    return {
        "x": torch.randn(2, *IMAGE).double(),
        "c_noise": torch.randn(2).double(),
        "labels": zeros,
        "visible": visible,
    }


def counted(model: DiT, num_kept: int, **want: Any) -> float:
    """Return the FLOPs of one image, counted by torch with explicit attention."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(**inputs(num_kept), **want)
    return counter.get_total_flops() / 2


@pytest.mark.parametrize("num_kept", [24, 15])
def test_flops_and_parameters_of_every_kind(make: Any, masked_settings: dict[str, Any], num_kept: int) -> None:
    model = make(image=IMAGE, outputs=2, **masked_settings)
    cost = formula(model, num_kept)
    assert cost.flops == pytest.approx(counted(model, num_kept), rel=0.01)
    assert cost.parameters == sum(p.numel() for p in model.parameters())
    assert formula(model, num_kept - 2).flops != pytest.approx(counted(model, num_kept), rel=0.01)


def test_flops_of_the_dense_path(make: Any, masked_settings: dict[str, Any]) -> None:
    model = make(image=IMAGE, outputs=2, **masked_settings)
    counted_flops = counted(model, 24, dense_path=True)
    assert formula(model, 0).flops == pytest.approx(counted_flops, rel=0.01)
    assert formula(model, 24).flops > 1.1 * counted_flops
    assert formula(model, 0).parameters == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("taps", [("encoder",), (0.3,), (1, "decoder"), ()])
def test_flops_and_parameters_of_a_cut_network(
    make: Any, masked_settings: dict[str, Any], taps: tuple[Tap, ...]
) -> None:
    model = make(image=IMAGE, outputs=2, **masked_settings)
    cost = formula(model, 15, taps, output=False)
    assert cost.flops == pytest.approx(counted(model, 15, taps=taps, output=False), rel=0.01)
    model.truncate(taps)
    assert cost.parameters == sum(p.numel() for p in model.parameters())


def test_flops_and_parameters_of_a_plain_dit(make: Any) -> None:
    model = make(image=IMAGE, outputs=2, depth=3, mlp_ratio=2.5)
    assert formula(model, 24).flops == pytest.approx(counted(model, 24), rel=0.01)
    assert formula(model, 24).parameters == sum(p.numel() for p in model.parameters())


def test_flops_and_parameters_of_a_low_rank_patch_embedding(make: Any) -> None:
    settings = {"image": IMAGE, "outputs": 2, "depth": 1, "patch": 4, "width": 64}
    model, direct = make(**settings, patch_rank=5), make(**settings)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(**inputs(24))
    cost = formula(model, 6)
    assert cost.flops == pytest.approx(counter.get_total_flops() / 2, rel=0.001)
    assert cost.parameters == sum(p.numel() for p in model.parameters())
    assert formula(direct, 6).flops != pytest.approx(cost.flops, rel=0.001)


@pytest.mark.parametrize("num_kept", [24, 15])
def test_activations_kept_for_the_backward_pass(make: Any, num_kept: int) -> None:
    """Within 5 %, with a fused kernel: distinct memory held by autograd, without parameters."""
    model = make(image=IMAGE, outputs=2, depth=4, width=64, decoder={"depth": 2, "width": 64, "heads": 2})
    for module in model.modules():
        if hasattr(module, "attention") and hasattr(module, "qkv"):
            module.attention = Sdpa(SdpaParams())
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    held: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        held[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = model(**inputs(num_kept))
    numbers = sum(t.untyped_storage().nbytes() // t.element_size() for pointer, t in held.items() if pointer not in own)
    assert result[0] is not None
    assert formula(model, num_kept).activations == pytest.approx(numbers / 2, rel=0.05)
