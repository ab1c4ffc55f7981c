"""Measure the effect of hidden tokens in the DiT backbone and compare with published numbers (`sddit-run verify`)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from sddit.interfaces import CheckContext, Measurement
from sddit.testing import fixtures
from sddit.testing.toys.network import ToyAttention
from sddit.testing.toys.params import ToyAttentionParams
from sddit.verify.published import network, parity, published
from sddit_dit.backbone import DiT
from sddit_dit.blocks import patchify
from sddit_dit.params import DiTParams

DECODERS: dict[str, dict[str, Any]] = {
    "split": {"depth": 3, "decoder": {"style": "split", "depth": 1}},
    "separate": {"decoder": {"depth": 1, "width": 12, "heads": 3}},
    "separate with a mask token": {"fill": "learned", "decoder": {"depth": 1, "width": 12, "heads": 3}},
    "with a class token": {"cls_token": True, "decoder": {"depth": 1, "width": 12, "heads": 3}},
}
"""Backbones that can hide tokens."""
VISIBLE = torch.tensor([[0, 3, 5, 6, 9, 10], [1, 2, 4, 7, 8, 15]])  # [B, K] of 16 tokens
HIDDEN_PIXEL, VISIBLE_PIXEL = (0, 2), (0, 0)  # of token 1, and of token 0, in the first image


def build_dit(**settings: Any) -> DiT:
    """Build a tiny network with random weights, none zero, so that no comparison holds trivially."""
    params = DiTParams(**{"depth": 2, "width": 16, "heads": 2, **settings})
    attention = ToyAttention(ToyAttentionParams())
    model = DiT(params, image=fixtures.IMAGE, num_classes=fixtures.CLASSES, outputs=1, attention=attention)
    fixtures.randomised(model, scale=0.3)
    return model.double()


def inputs() -> tuple[Tensor, Tensor, Tensor]:
    """Return two images with their noise levels and labels."""
    return (
        fixtures.numbers(2, *fixtures.IMAGE, dtype=torch.float64),
        torch.tensor([-1.0, 0.5]).double(),
        torch.tensor([0, 3]),
    )


@torch.no_grad()
def spans(context: CheckContext) -> Iterator[Measurement]:
    """Compare masked and dense networks with nothing hidden, and check that hidden tokens do not reach the encoder."""
    x, level, labels = inputs()
    every = torch.arange(16).expand(2, -1)
    for name, settings in DECODERS.items():
        model = build_dit(**settings)
        dense, masked = model(x, level, labels)[0], model(x, level, labels, visible=every)[0]
        yield Measurement(
            f"{name}: outputs that change when all tokens are listed as visible", differing(dense, masked), 0
        )

        before = encoded(model, x)
        yield Measurement(
            f"{name}: encoder numbers that a hidden pixel changes",
            differing(before, encoded(model, moved(x, HIDDEN_PIXEL))),
            0,
        )
        seen = differing(before, encoded(model, moved(x, VISIBLE_PIXEL)))
        yield Measurement(f"{name}: control, those that a visible pixel changes", seen, 1, ">=")


def encoded(model: DiT, x: Tensor) -> Tensor:
    """Return the encoder's tokens at the visible positions, [B, K, D]."""
    _, level, labels = inputs()
    tokens: Tensor = model(x, level, labels, taps=("encoder",), output=False, visible=VISIBLE)[2]["encoder"].patch
    return tokens


def moved(x: Tensor, pixel: tuple[int, int]) -> Tensor:
    """Return x with one pixel of the first image changed."""
    other = x.clone()
    other[0, :, pixel[0], pixel[1]] += 1.0
    return other


@torch.no_grad()
def fill(context: CheckContext) -> Iterator[Measurement]:
    """Check that fill = "input" passes embedded noisy tokens to the decoder at hidden positions, without mask token."""
    model, (x, level, labels) = build_dit(**DECODERS["split"]), inputs()
    recorded: list[Tensor] = []

    def record(module: nn.Module, arguments: tuple[Any, ...]) -> None:
        recorded.append(arguments[0])

    first = model.blocks[0].register_forward_pre_hook(record)
    model(x, level, labels)
    first.remove()
    decoder = model.blocks[model.params.encoder_depth].register_forward_pre_hook(record)
    model(x, level, labels, visible=VISIBLE)
    decoder.remove()
    embedded, entering = recorded  # [B, N, D]
    hidden = torch.ones(2, 16, dtype=torch.bool).scatter(1, VISIBLE, False)
    yield Measurement(
        "hidden positions that are not their own embedded token", differing(embedded[hidden], entering[hidden]), 0
    )
    visible = differing(embedded[~hidden], entering[~hidden])
    yield Measurement("control: visible positions, which the encoder has changed", visible, 1, ">=")
    mask_tokens = sum("mask_token" in name for name, _ in model.named_parameters())
    yield Measurement("mask tokens among the parameters", mask_tokens, 0)


@torch.no_grad()
def heads(context: CheckContext) -> Iterator[Measurement]:
    """Compare an auxiliary head with the output of a network that ends at its block, and outputs with and without."""
    long, (x, level, labels) = build_dit(depth=4, aux_heads={"inner": 2}), inputs()
    plain, short = build_dit(depth=4), build_dit(depth=2)
    weights = long.state_dict()
    plain.load_state_dict({name: tensor for name, tensor in weights.items() if not name.startswith("aux_heads.")})
    of_head = {name.replace("aux_heads.inner_head.", "final."): tensor for name, tensor in weights.items()}
    short.load_state_dict({name: of_head[name] for name in short.state_dict()})
    raw, found, _ = long(x, level, labels)
    yield Measurement("outputs that an auxiliary head changes", differing(raw, plain(x, level, labels)[0]), 0)
    ended = differing(found["inner"], short(x, level, labels)[0])
    yield Measurement("outputs of the head that differ from a network that ends there", ended, 0)
    yield Measurement("control, those that differ from the output", differing(found["inner"], raw), 1, ">=")
    inside = build_dit(aux_heads={"inner": 1}, **DECODERS["separate"])
    at_visible = torch.zeros(2, 16, dtype=torch.bool).scatter(1, VISIBLE, True)
    predicted = patchify(inside(x, level, labels, visible=VISIBLE)[1]["inner"], (4, 4))
    yield Measurement("hidden tokens that a head in the encoder predicts", float(predicted[~at_visible].any()), 0)
    empty = float((predicted[at_visible] == 0).all(dim=-1).sum())
    yield Measurement("visible tokens that it does not predict", empty, 0)


def encoder_gradient(context: CheckContext) -> Iterator[Measurement]:
    """Check that the gradient from the decoder to the encoder is multiplied by the factor, and the output unchanged."""
    factors: dict[str | float, float] = {"full": 1.0, 0.25: 0.25, "none": 0.0}
    found = {setting: output_and_gradients(encoder_gradient=setting) for setting in factors}
    raw, full = found["full"]
    encoder = [name for name in full if name.startswith(("patch.", "cls_token", "blocks.0.", "blocks.1."))]
    decoder = [name for name in full if name.startswith(("decoder_input.", "blocks.2.", "final."))]
    for setting, factor in factors.items():
        other, gradients = found[setting]
        yield Measurement(f"{setting}: outputs that differ", differing(raw, other), 0)
        wrong = sum(not torch.equal(gradients[name], factor * full[name]) for name in encoder)
        yield Measurement(f"{setting}: gradients of the encoder that are not {factor:g} of the full ones", wrong, 0)
        changed = sum(not torch.equal(gradients[name], full[name]) for name in decoder)
        yield Measurement(f"{setting}: gradients of the decoder that differ", changed, 0)
    reached = sum(bool(full[name].any()) for name in encoder)
    yield Measurement("control, parameters of the encoder with a gradient", reached, len(encoder), ">=")


def output_and_gradients(**decoder: Any) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the output of a masked view, and the gradient of its sum of squares to every parameter."""
    model = build_dit(cls_token=True, decoder={**DECODERS["separate"]["decoder"], **decoder})
    raw = model(*inputs(), visible=VISIBLE)[0]
    assert raw is not None
    torch.autograd.backward(raw.square().sum())
    return raw.detach(), {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in model.named_parameters()}


def published_dit(context: CheckContext) -> Iterator[Measurement]:
    """Compare outputs, each block and the gradient of the input with the published DiT."""
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
    """Compare outputs with the published MaskDiT, with and without its mask."""
    assert context.component is not None
    stored = published(context, "maskdit_a")
    model = network(context.component, "maskdit", stored)
    one_hot = stored.inputs["y"]  # its zero row is the null label
    labels = torch.where(one_hot.any(dim=1), one_hot.argmax(dim=1), one_hot.shape[1])
    inputs = stored.inputs["x"], stored.inputs["raw_c_noise"], labels
    visible = stored.outputs["mask/ids_keep"].sort(dim=1).values
    ours = {"raw/eval_unmasked": model(*inputs)[0], "raw/train_masked": model(*inputs, visible=visible)[0]}
    yield from parity("maskdit_a", ours, stored)


def differing(one: Tensor, two: Tensor) -> float:
    """Count the values that are not bit-identical."""
    return float((one != two).sum()) if one.shape == two.shape else math.inf
