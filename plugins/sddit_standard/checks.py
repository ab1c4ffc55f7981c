"""Check draws, masks, gradients and checkpoints, which concern every method, on toys; Muon; the Inception network."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sddit.diffusion import masking as mask
from sddit.diffusion.draws import KeyedDraws, philox
from sddit.interfaces import CheckContext, Measurement
from sddit.testing import fixtures, sessions
from sddit.verify.published import Stored, parity, published
from sddit_standard.features.inception import Inception, look
from sddit_standard.muon import Muon
from sddit_standard.params import MuonParams

MAX_STANDARD_ERRORS = 5.0
"""Bound of each statistical check."""

KNOWN_ANSWERS = (  # of Philox 4x32-10, published with the Random123 library: counter, key, output
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
)


def num_different(one: Tensor, two: Tensor) -> float:
    """Return the number of elements that differ; infinity if the shapes do."""
    return float((one != two).sum()) if one.shape == two.shape else math.inf


def draws(context: CheckContext) -> Iterator[Measurement]:
    """Check the generator: its published answers, independence of batch and device, mean and variance."""
    wrong = 0.0
    for counter, key, answer in KNOWN_ANSWERS:
        made = philox(torch.tensor(counter, device=context.device)[:, None], key)[:, 0].cpu()
        wrong += num_different(made, torch.tensor(answer))
    yield Measurement("words that are not Philox's published answers", wrong, 0)

    ids = torch.arange(100, 116, device=context.device)
    whole = KeyedDraws(7, 3, ids).normal("noise", (3, 5))
    parts = torch.cat([KeyedDraws(7, 3, part).normal("noise", (3, 5)) for part in torch.split(ids, 3)])
    yield Measurement("numbers that depend on the batch around them", num_different(whole, parts), 0)

    if context.device != "cpu":
        on_cpu = KeyedDraws(7, 3, ids.cpu()).uniform("noise", (64,))
        there = KeyedDraws(7, 3, ids).uniform("noise", (64,)).cpu()
        yield Measurement(
            f"uniform numbers that differ between cpu and {context.device}", num_different(on_cpu, there), 0
        )

    many = KeyedDraws(1, 0, torch.arange(256, device=context.device)).normal("noise", (256,)).double().flatten()
    n = many.numel()
    yield Measurement(
        "normal numbers: mean, in standard errors", abs(float(many.mean())) * math.sqrt(n), MAX_STANDARD_ERRORS
    )
    spread = abs(float(many.var()) - 1) * math.sqrt(n / 2)
    yield Measurement("normal numbers: variance, in standard errors", spread, MAX_STANDARD_ERRORS)


def masks(context: CheckContext) -> Iterator[Measurement]:
    """Check masks: the number of visible tokens, their rising order, and equal probability of each token."""
    wrong = sum(
        mask.keep_count(tokens, percent / 100) != math.floor(tokens * (1 - Fraction(percent, 100)))
        for tokens in range(1, 257)
        for percent in range(100)
        if math.floor(tokens * (1 - Fraction(percent, 100)))
    )
    yield Measurement("token counts that are not floor(L (1 - r)), L to 256, r in hundredths", wrong, 0)

    rows, kept = 4096, 24
    drawn = KeyedDraws(5, 0, torch.arange(rows, device=context.device))
    for shape in get_args(mask.MaskShape):
        visible = mask.draw_mask(drawn, "mask", grid=(6, 8), ratio=0.5, shape=shape)
        assert visible is not None
        unsorted = float((visible.diff(dim=1) <= 0).sum()) + rows * abs(visible.shape[1] - kept)
        yield Measurement(f"{shape}: places that are not {kept} rising token numbers", unsorted, 0)
        if shape == "random":  # a block contains tokens at the border less often
            often = torch.bincount(visible.flatten(), minlength=48).double() / rows
            error = math.sqrt(0.25 / rows)
            yield Measurement(
                "random: fraction of each token, in standard errors",
                float((often - 0.5).abs().max()) / error,
                MAX_STANDARD_ERRORS,
            )
        if shape == "cells":
            shown = torch.zeros(rows, 48, device=visible.device).scatter(1, visible, 1.0)
            counts = shown.view(rows, 3, 2, 4, 2).sum(dim=(2, 4))  # of each cell
            yield Measurement("cells: cells of 2 x 2 tokens that do not show 2", float((counts != 2).sum()), 0)


def gradients(context: CheckContext) -> Iterator[Measurement]:
    """Compare gradients with and without micro-batches, and in float64, float32 and bfloat16."""
    whole = {precision: gradient(context, precision) for precision in ("fp64", "fp32", "bf16")}
    for precision, bound in (("fp64", 1e-12), ("fp32", 1e-5)):
        for micro in (1, 2, 4):
            parts = gradient(context, precision, f"train.micro_batch={micro}")
            shown = f"{precision}: 8 images at once and {micro} at a time"
            yield Measurement(shown, relative_difference(parts, whole[precision]), bound)
    yield Measurement("fp32 next to fp64", relative_difference(whole["fp32"], whole["fp64"]), 1e-5)
    yield Measurement("bf16 next to fp32", relative_difference(whole["bf16"], whole["fp32"]), 3e-2)


def gradient(context: CheckContext, precision: str, *overrides: str) -> Tensor:
    """Return the gradient of the toy's first step. The weights are float32 numbers in every precision."""
    session = sessions.toy_session(f"train.precision={precision}", *overrides, device=context.device)
    assert session.teacher is not None
    session.student.load_state_dict(sessions.toy_session(device=context.device).student.state_dict())
    session.teacher.update(session.student.backbone, session.student.terms, momentum=0.0)
    return sessions.gradient(session)


def relative_difference(one: Tensor, two: Tensor) -> float:
    """Return the norm of the difference of two vectors relative to that of the second."""
    return float((one - two).norm() / two.norm())


def checkpoints(context: CheckContext) -> Iterator[Measurement]:
    """Compare four steps with two, a restored checkpoint and two more: bitwise equal. On the CPU."""
    straight = sessions.state_of(sessions.toy_session(steps=4))
    half = sessions.toy_session(steps=2)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "checkpoints"
        place = sessions.save(half, folder)
        resumed, forgetful = sessions.toy_session(), sessions.toy_session()
        sessions.restore_latest(resumed, folder)
        restored = num_changed(sessions.state_of(resumed), sessions.state_of(half))
        yield Measurement("tensors of the restored run that differ", restored, 0)
        sessions.advance(resumed, 2)
        later = num_changed(sessions.state_of(resumed), straight)
        yield Measurement("tensors that differ two steps later", later, 0)
        sessions.restore_latest(forgetful, folder)
        forgetful.optimizer.state.clear()
        sessions.advance(forgetful, 2)
        changed = num_changed(sessions.state_of(forgetful), straight)
        yield Measurement("control: they differ without the optimizer's state", changed, 1, ">=")
        yield Measurement("fraction of flipped bits that are noticed", fraction_detected(place), 1, ">=")


def num_changed(one: dict[str, Tensor], two: dict[str, Tensor]) -> float:
    """Return the number of tensors that differ between the states of two runs."""
    return len(one.keys() ^ two.keys()) + sum(
        num_different(one[name], two[name]) > 0 for name in one.keys() & two.keys()
    )


def fraction_detected(checkpoint: Path) -> float:
    """Flip three bits in each file of a checkpoint, one at a time, and return the fraction that is detected."""
    outcomes = []
    for file in sorted(checkpoint.iterdir()):
        content = file.read_bytes()
        for offset in (0, len(content) // 2, len(content) - 1):
            flipped = bytearray(content)
            flipped[offset] ^= 1
            file.write_bytes(flipped)
            outcomes.append(not sessions.is_intact(checkpoint))
        file.write_bytes(content)
    return sum(outcomes) / len(outcomes)


MUON_RATE = 0.01
MUON_STEPS = 3
MAX_SINGULAR_DISTANCE = 0.5  # of a singular value from 1, as the authors of the iteration state it


def muon(context: CheckContext) -> Iterator[Measurement]:
    """Take steps with a matrix, with three that are stacked, with a table and with a bias."""
    plain: dict[str, Any] = {"adjust_lr_fn": "original", "momentum": 0.0, "nesterov": False}
    change = trained_by_muon({"matrix": fixtures.numbers(24, 16)}, 1, **plain)["matrix"] - fixtures.numbers(24, 16)
    singular = torch.linalg.svdvals(change / (MUON_RATE * (24 / 16) ** 0.5))
    yield Measurement(
        "singular values of an update: distance from 1", float((singular - 1).abs().max()), MAX_SINGULAR_DISTANCE
    )
    spread = torch.linalg.svdvals(fixtures.numbers(24, 16, key=7))
    ratio = float(spread.max() / spread.min())
    yield Measurement("control: those of the gradient, largest by smallest", ratio, 3, ">=")

    parts = {f"matrix {index}": part for index, part in enumerate(fixtures.numbers(48, 16).chunk(3))}
    separate = torch.cat(list(trained_by_muon(parts, MUON_STEPS).values()))
    stacked, joint = (
        trained_by_muon({"stacked": fixtures.numbers(48, 16)}, MUON_STEPS, split_qkv=split)["stacked"]
        for split in (True, False)
    )
    yield Measurement("stacked matrices: numbers unlike those of three", num_different(stacked, separate), 0)
    yield Measurement("control: as one matrix they differ", num_different(joint, separate), 1, ">=")

    others = {"embedding": fixtures.numbers(8, 16), "vector": fixtures.numbers(16)}
    ours = trained_by_muon({"matrix": fixtures.numbers(16, 16), **others}, MUON_STEPS)
    weights = {name: weight.clone().requires_grad_() for name, weight in others.items()}
    adamw = torch.optim.AdamW(weights.values(), lr=MUON_RATE, weight_decay=0.0, fused=True)
    advance_all(adamw, weights, MUON_STEPS)
    unlike = sum(num_different(ours[name], weight.detach()) for name, weight in weights.items())
    yield Measurement("embedding and bias: numbers unlike those of AdamW", unlike, 0)


def trained_by_muon(initial: Mapping[str, Tensor], steps: int, **settings: Any) -> dict[str, Tensor]:
    """Return weights after some steps of Muon; the first word of a name is its role, `stacked` for three matrices."""
    weights = {name: weight.clone().requires_grad_() for name, weight in initial.items()}
    groups = [
        {"params": [weight], "lr_scale": 1.0, "head": False, **muon_role_of(name.partition(" ")[0])}
        for name, weight in weights.items()
    ]
    optimizer = Muon(MuonParams(**{"lr": MUON_RATE, **settings}))(groups, torch.device("cpu"))
    advance_all(optimizer, weights, steps)
    return {name: weight.detach() for name, weight in weights.items()}


def muon_role_of(word: str) -> dict[str, object]:
    return {"role": "matrix", "stacked": 3} if word == "stacked" else {"role": word, "stacked": 1}


def advance_all(optimizer: torch.optim.Optimizer, weights: Mapping[str, Tensor], steps: int) -> None:
    """Take steps with the same made-up gradients for weights of the same names."""
    stacked = fixtures.numbers(48, 16, key=7)
    parts = {f"matrix {index}": part for index, part in enumerate(stacked.chunk(3))}
    for step in range(1, steps + 1):
        for name, weight in weights.items():
            weight.grad = step * parts.get(name, fixtures.numbers(*weight.shape, key=7))
        optimizer.step()


FLOAT32 = 1e-4
"""Bound of the difference of two Inception networks in float32."""


def published_inception(context: CheckContext) -> Iterator[Measurement]:
    """Compare the outputs of the Inception network under made-up weights with those of published implementations.

    They are compared in float64, and in float32 as scores use it.
    """
    stored, device = published(context, "inception_a"), torch.device(context.device)
    single, double = inception_of(stored, torch.float32).to(device), inception_of(stored, torch.float64).to(device)
    groups = {group["name"]: group for group in stored.meta["groups"]}
    for size in groups if context.full else ("48x80",):
        images = made_up_images(groups[size])
        yield from parity("inception_a", inception_outputs(double, images, size), stored)
        for name, ours in inception_outputs(single, images, size).items():
            difference = relative_to_mean(ours.double(), stored.outputs[name])
            yield Measurement(f"inception_a: {name}, float32", difference, FLOAT32)


def inception_outputs(network: Inception, images: Tensor, size: str) -> dict[str, Tensor]:
    """Return what scores use of the network, by the names of the stored outputs for images of that size."""
    seen = look(network, images, torch.device(network.fc.weight.device))
    logits = seen.pooled @ network.fc.weight.T.to(seen.pooled.device)
    return {f"{size}/pooled": seen.pooled, f"{size}/spatial": seen.spatial, f"{size}/logits_unbiased": logits}


def relative_to_mean(ours: Tensor, theirs: Tensor) -> float:
    """Return the largest difference relative to max(|theirs|, the mean of |theirs|); infinity if the shapes differ."""
    if ours.shape != theirs.shape:
        return math.inf
    return float(((ours - theirs).abs() / theirs.abs().clamp(min=float(theirs.abs().mean()))).max())


def inception_of(stored: Stored, dtype: torch.dtype) -> Inception:
    """Return the Inception network with the made-up weights of stored numbers."""
    network = Inception()
    counters = {name: count for name, count in network.state_dict().items() if name.endswith("num_batches_tracked")}
    network.load_state_dict({**inception_weights(stored.meta), **stored.state, **counters})
    return network.eval().requires_grad_(False).to(dtype)


def inception_weights(meta: Mapping[str, Any]) -> dict[str, Tensor]:
    """Draw the made-up weights, float32, that the JSON file of stored numbers describes: they are too large to store.

    They lack the running statistics of the batch norms, which are stored.
    """
    generator = np.random.default_rng(meta["weights"]["seed"])
    ranges = {"gamma": (0.5, 0.2), "beta": (0.6, 0.4), "bias": (-1.0, 2.0), "head": (-0.25, 0.5)}  # start, width
    weights = {}
    for name, shape, rule in meta["weights"]["order"]:
        start, width = ranges.get(rule) or _he_range(shape)
        values = start + width * generator.random(shape)
        if rule == "head":  # the second half of the features counters the first: logits stay small
            values[:, values.shape[1] // 2 :] = -values[:, : values.shape[1] // 2]
        weights[name] = torch.from_numpy(values.astype(np.float32))
    return weights


def _he_range(shape: list[int]) -> tuple[float, float]:
    """Return start and width of the uniform weights that keep the scale of activations (arXiv:1502.01852)."""
    bound = math.sqrt(6 / math.prod(shape[1:]))
    return -bound, 2 * bound


def made_up_images(group: Mapping[str, Any]) -> Tensor:
    """Draw the images of a group that the JSON file of stored numbers describes: uint8 [n, 3, H, W]."""
    generator = np.random.default_rng(group["seed"])
    return torch.from_numpy(np.stack([_made_up_image(generator, group) for _ in range(group["count"])]))


def _made_up_image(generator: np.random.Generator, group: Mapping[str, Any]) -> NDArray[np.uint8]:
    """Draw five by five patches of one colour each, with noise of a random strength."""
    height, width = group["height"], group["width"]
    patches = generator.integers(group["low"], group["high"], (3, 5, 5))
    strength = int(generator.integers(0, 97))
    noise = generator.integers(-strength, strength + 1, (3, height, width))
    rows, columns = np.arange(height) * 5 // height, np.arange(width) * 5 // width
    return (patches[:, rows[:, None], columns] + noise).clip(0, 255).astype(np.uint8)
