"""Check draws, masks, gradients and checkpoints, which concern every method, on toys."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import get_args

import torch
from torch import Tensor

from sddit.diffusion import masking as mask
from sddit.diffusion.draws import KeyedDraws, philox
from sddit.interfaces import CheckContext, Measurement
from sddit.testing import sessions

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
