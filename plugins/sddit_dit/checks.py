"""What `sddit-run verify` measures of the DiT backbone: what hiding tokens may change and what not, and published numbers."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from sddit.interfaces import CheckContext, Measurement
from sddit.testing import fixtures as things
from sddit.testing.toys.network import ToyAttention
from sddit.testing.toys.params import ToyAttentionParams
from sddit.verify.published import network, parity, published
from sddit_dit.backbone import DiT
from sddit_dit.params import DiTParams

DECODERS: dict[str, dict[str, Any]] = {
    "split": {"depth": 3, "decoder": {"style": "split", "depth": 1}},
    "separate": {"decoder": {"depth": 1, "width": 12, "heads": 3}},
    "separate with a mask token": {"fill": "learned", "decoder": {"depth": 1, "width": 12, "heads": 3}},
    "with a class token": {"cls_token": True, "decoder": {"depth": 1, "width": 12, "heads": 3}},
}
"""Ways to hide tokens."""
KEPT = torch.tensor([[0, 3, 5, 6, 9, 10], [1, 2, 4, 7, 8, 15]])  # [B, K] of 16 tokens
HIDDEN_PIXEL, VISIBLE_PIXEL = (0, 2), (0, 0)  # of token 1, and of token 0, in the first image


def made(**settings: Any) -> DiT:
    """A tiny network with no weight at zero, so that nothing agrees for want of a signal."""
    params = DiTParams(**{"depth": 2, "width": 16, "heads": 2, **settings})
    attention = ToyAttention(ToyAttentionParams())
    model = DiT(params, image=things.IMAGE, num_classes=things.CLASSES, outputs=1, attention=attention)
    things.randomised(model, scale=0.3)
    return model.double()


def inputs() -> tuple[Tensor, Tensor, Tensor]:
    """Two images, their levels and labels."""
    return (
        things.numbers(2, *things.IMAGE, dtype=torch.float64),
        torch.tensor([-1.0, 0.5]).double(),
        torch.tensor([0, 3]),
    )


@torch.no_grad()
def spans(context: CheckContext) -> Iterator[Measurement]:
    """Where nothing is hidden the masked network is the dense one; a hidden token does not reach the encoder."""
    x, level, labels = inputs()
    every = torch.arange(16).expand(2, -1)
    for name, settings in DECODERS.items():
        model = made(**settings)
        dense, masked = model(x, level, labels)[0], model(x, level, labels, visible=every)[0]
        yield Measurement(f"{name}: outputs that change when all tokens are named visible", differing(dense, masked), 0)

        before = encoded(model, x)
        yield Measurement(
            f"{name}: encoder numbers that a hidden pixel changes",
            differing(before, encoded(model, moved(x, HIDDEN_PIXEL))),
            0,
        )
        seen = differing(before, encoded(model, moved(x, VISIBLE_PIXEL)))
        yield Measurement(f"{name}: control, those that a visible pixel changes", seen, 1, ">=")


def encoded(model: DiT, x: Tensor) -> Tensor:
    """The encoder's tokens of the visible places, [B, K, D]."""
    _, level, labels = inputs()
    tokens: Tensor = model(x, level, labels, taps=("encoder",), output=False, visible=KEPT)[2]["encoder"].patch
    return tokens


def moved(x: Tensor, pixel: tuple[int, int]) -> Tensor:
    """x with one pixel of the first image changed."""
    other = x.clone()
    other[0, :, pixel[0], pixel[1]] += 1.0
    return other


@torch.no_grad()
def fill(context: CheckContext) -> Iterator[Measurement]:
    """With fill = "input" a hidden place reaches the decoder as its own embedded noisy token, and needs no mask token."""
    model, (x, level, labels) = made(**DECODERS["split"]), inputs()
    given: list[Tensor] = []

    def note(module: nn.Module, arguments: tuple[Any, ...]) -> None:
        given.append(arguments[0])

    first = model.blocks[0].register_forward_pre_hook(note)
    model(x, level, labels)
    first.remove()
    decoder = model.blocks[model.params.encoder_depth].register_forward_pre_hook(note)
    model(x, level, labels, visible=KEPT)
    decoder.remove()
    embedded, entering = given  # [B, N, D]
    hidden = torch.ones(2, 16, dtype=torch.bool).scatter(1, KEPT, False)
    yield Measurement(
        "hidden places that are not their own embedded token", differing(embedded[hidden], entering[hidden]), 0
    )
    visible = differing(embedded[~hidden], entering[~hidden])
    yield Measurement("control: visible places, which the encoder has changed", visible, 1, ">=")
    mask_tokens = sum("mask_token" in name for name, _ in model.named_parameters())
    yield Measurement("mask tokens among the parameters", mask_tokens, 0)


def published_dit(context: CheckContext) -> Iterator[Measurement]:
    """Outputs, block by block, and the gradient to the input of the published DiT."""
    assert context.component is not None
    stored = published(context, "dit_a")
    model = network(context.component, "dit", stored)
    x = stored.inputs["x"].clone().requires_grad_()
    raw, _, taps = model(x, stored.inputs["t"], stored.inputs["y"], taps=(1, 2, 3))
    (raw * stored.inputs["grad_out"]).sum().backward()
    assert x.grad is not None
    ours = {"forward": raw, "grad_x": x.grad}
    ours |= {f"mid/block{number - 1}": taps[number].patch[:1] for number in (1, 2, 3)}
    yield from parity("dit_a", ours, stored)


@torch.no_grad()
def published_maskdit(context: CheckContext) -> Iterator[Measurement]:
    """Outputs of the published MaskDiT, with and without its mask."""
    assert context.component is not None
    stored = published(context, "maskdit_a")
    model = network(context.component, "maskdit", stored)
    one_hot = stored.inputs["y"]  # its zero row is the null label
    labels = torch.where(one_hot.any(dim=1), one_hot.argmax(dim=1), one_hot.shape[1])
    given = stored.inputs["x"], stored.inputs["raw_c_noise"], labels
    visible = stored.outputs["mask/ids_keep"].sort(dim=1).values
    ours = {"raw/eval_unmasked": model(*given)[0], "raw/train_masked": model(*given, visible=visible)[0]}
    yield from parity("maskdit_a", ours, stored)


def differing(one: Tensor, two: Tensor) -> float:
    """How many numbers are not the same bits."""
    return float((one != two).sum()) if one.shape == two.shape else math.inf
