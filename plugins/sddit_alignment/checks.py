"""Measure the align loss and its pairs for `sddit-run verify`, against closed forms and published numbers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sddit.diffusion.preconditioning import denoise_view
from sddit.interfaces import CheckContext, Measurement, Outputs, Tap, Tokens, View
from sddit.losses import Losses
from sddit.testing import fixtures
from sddit.testing.teacher import Teacher
from sddit.testing.toys.network import ToyAttention
from sddit.testing.toys.params import ToyAttentionParams
from sddit.verify.published import Stored, parity, published
from sddit_alignment.loss import Align
from sddit_alignment.pair_params import OffsetPairParams
from sddit_alignment.pairs import OffsetPair
from sddit_alignment.params import AlignParams
from sddit_dit.backbone import DiT
from sddit_dit.blocks import patchify
from sddit_dit.params import DiTParams

DEPTH, WIDTH = 4, 12
TAP, TARGET_TAP = 2, 4  # blocks
T_MIN = 0.05
PARTS = ("weight", "bias")
PATCH_VALUES = 8  # of an image of the fixtures: 2 channels of 2x2


@dataclass(slots=True)
class Run:
    """A small DiT without zero weights, a loss and what the loss reads, float64."""

    backbone: DiT
    loss: Align
    teacher: Teacher
    views: dict[str, View]
    outputs: dict[str, Outputs]

    def value(self) -> Tensor:
        """Return the loss of each sample, [B]."""
        value: Tensor = self.loss(fixtures.context(), self.views, self.outputs)
        return value


def build_loss(widths: dict[Tap, int], **settings: Any) -> Align:
    """Build a loss with random heads, float64."""
    with fixtures.default_dtype(torch.float64):
        loss = Align(AlignParams(**settings), widths=widths, grid=fixtures.GRID, image=fixtures.IMAGE)
    fixtures.randomised(loss, scale=0.3)
    return loss


def run(pairs: OffsetPairParams, **settings: Any) -> Run:
    """Run student and teacher, a copy of the student, on a pair of views."""
    params, shapes = DiTParams(depth=DEPTH, width=WIDTH, heads=2), fixtures.shapes()
    with fixtures.default_dtype(torch.float64):
        attention = ToyAttention(ToyAttentionParams())
        backbone = DiT(params, image=shapes.image, num_classes=shapes.num_classes, outputs=1, attention=attention)
    fixtures.randomised(backbone, scale=0.3)
    loss = build_loss(dict.fromkeys((TAP, TARGET_TAP), WIDTH), **settings)
    teacher = Teacher(backbone, Losses({"align": loss}), (loss.params.target_tap,))
    teacher.update(backbone, Losses({"align": loss}), 0.0)
    views = views_of(pairs)
    networks = {"student": backbone, "teacher": teacher.backbone}
    needs = loss.params.needs()
    taps = {"student": needs.student.taps, "teacher": needs.teacher.taps if needs.teacher else ()}
    ctx = fixtures.context()
    outputs = {
        name: denoise_view(network, ctx.schedule, views[name], taps[name], output=False)
        for name, network in networks.items()
        if taps[name]
    }
    return Run(backbone, loss, teacher, {name: views[name] for name in outputs}, outputs)


def views_of(params: OffsetPairParams) -> dict[str, View]:
    """Return the two views of a tiny batch, float64."""
    ctx = fixtures.context()
    return OffsetPair(params, grid=fixtures.GRID)(fixtures.batch(torch.float64), ctx.draws, ctx.schedule, ctx)


def mean_cosine(one: Tensor, two: Tensor) -> Tensor:
    """Return the mean cosine similarity of the tokens [B, n, D] of each sample, written out token by token, [B]."""
    rows = [
        sum(torch.dot(a, b) / (torch.dot(a, a) * torch.dot(b, b)).sqrt() for a, b in zip(x, y, strict=True)) / len(x)
        for x, y in zip(one, two, strict=True)
    ]
    return torch.stack([torch.as_tensor(row) for row in rows])


def times(context: CheckContext) -> Iterator[Measurement]:
    """Measure that s = max(t - u, t_min) with u in (0, offset), at the student's noise, image and label."""
    for name, params in {
        "linear": OffsetPairParams(offset=0.3, t_min=T_MIN, sigma_data=0.5),
        "native": OffsetPairParams(offset=0.3, t_min=T_MIN, time="native"),
    }.items():
        views = views_of(params)
        student, teacher = views["student"], views["teacher"]
        t, s = (view.t / (view.t + 0.5) if name == "linear" else view.t for view in (student, teacher))
        free = s > T_MIN * (1 + 1e-9)
        yield Measurement(f"{name}: teachers below t_min", float((s < T_MIN * (1 - 1e-12)).sum()), 0)
        later = (s > t) & (t > T_MIN)
        yield Measurement(f"{name}: teachers later than a student above t_min", float(later.sum()), 0)
        gap = (t - s)[free]
        yield Measurement(f"{name}: largest gap, less the offset", float((gap - 0.3).max()), 0)
        yield Measurement(f"{name}: control, mean gap above t_min", float(gap.mean()), 0.02, ">=")
        expected = fixtures.schedule().perturb(student.x0, student.noise, teacher.t)
        yield Measurement(
            f"{name}: the teacher's image, from the student's noise", float((teacher.x - expected).abs().max()), 0
        )
        yield Measurement(f"{name}: labels that differ", float((teacher.labels != student.labels).sum()), 0)


def same_pass(context: CheckContext) -> Iterator[Measurement]:
    """Measure LayerSync's loss: 1 - cosine, and no gradient beyond the student's block."""
    pair, keys = OffsetPairParams(offset=0.0), {"source": "self", "tap": TAP, "head": "none"}
    equal = run(pair, **keys, target_tap=TAP)
    yield Measurement("identical taps: distance", float(equal.value().detach().abs().max()), 1e-12)

    found = run(pair, **keys, target_tap=TARGET_TAP)
    value = found.value()
    student, target = (found.outputs["student"].taps[tap].patch for tap in (TAP, TARGET_TAP))
    error = (1 - value - mean_cosine(student, target)).abs().max()
    yield Measurement("distance, from a computation by hand", float(error.detach()), 1e-12)
    torch.autograd.backward(value.mean())
    sizes = [gradient_of(block) for block in found.backbone.blocks]
    yield Measurement("gradient of the blocks after the tap", max(sizes[TAP:]), 0)
    yield Measurement("control: gradient of the blocks up to the tap", min(sizes[:TAP]), 1e-9, ">=")

    for kind in ("tokens", "channels"):
        permuted = run(pair, **keys, target_tap=TAP, permute=kind)
        (target,) = (each.patch for each in permuted.loss.targets("student", permuted.views, permuted.outputs))
        own = permuted.outputs["student"].taps[TAP].patch
        yield Measurement(
            f"{kind} permuted: distance of identical taps", float(permuted.value().detach().min()), 0.01, ">="
        )
        norms = (torch.linalg.vector_norm(each, dim=-1).sort(dim=1).values for each in (own, target))
        yield Measurement(f"{kind} permuted: norms of the targets", difference(*norms), 1e-12)


def difference(one: Tensor, two: Tensor) -> float:
    """Return the largest difference."""
    return float((one - two).detach().abs().max())


def gradient_of(module: torch.nn.Module) -> float:
    """Return the largest gradient of the parameters of a module; 0 without any."""
    return max(float(p.grad.abs().max()) if p.grad is not None else 0.0 for p in module.parameters())


def teacher(context: CheckContext) -> Iterator[Measurement]:
    """Measure SRA's loss with a teacher that equals its student, and that no gradient reaches the teacher."""
    found = run(OffsetPairParams(offset=0.0), tap=TAP, target_tap=TAP)
    value = found.value()
    tokens = found.outputs["student"].taps[TAP].patch
    expected = 1 - mean_cosine(found.loss.head(tokens, None), tokens)
    yield Measurement("no offset, momentum 0, one tap: from 1 - cos(g(h), h)", difference(value, expected), 1e-12)
    torch.autograd.backward(value.mean())
    count = sum(p.grad is not None or p.requires_grad for p in found.teacher.backbone.parameters())
    yield Measurement("teacher's parameters with a gradient", count, 0)
    yield Measurement("control: gradient of the head", gradient_of(found.loss.head), 1e-9, ">=")
    blocks = len(found.teacher.backbone.blocks)
    yield Measurement("blocks of the teacher after its tap", blocks - TAP, 0)


def clean(context: CheckContext) -> Iterator[Measurement]:
    """Measure SRA 2's loss on tokens that are a linear map of the patches, with the exact inverse as its head."""
    loss = build_loss(
        {TAP: PATCH_VALUES}, source="clean", tap=TAP, metric="smooth_l1", beta=0.05, head_width=2 * PATCH_VALUES
    )
    view = views_of(OffsetPairParams())["student"]
    patches = patchify(view.x0, fixtures.GRID)  # [B, N, P]
    mixing = torch.eye(PATCH_VALUES, dtype=torch.float64) + 0.1 * fixtures.numbers(
        PATCH_VALUES, PATCH_VALUES, dtype=torch.float64
    )
    invert(loss, mixing)

    def value(tokens: Tensor) -> Tensor:
        outputs = {"student": Outputs(taps={TAP: Tokens(tokens @ mixing.T)})}
        found: Tensor = loss(fixtures.context(), {"student": view}, outputs)
        return found

    yield Measurement("distance with the exact inverse as head", float(value(patches).detach().max()), 1e-12)
    error = 0.049 * torch.tanh(fixtures.numbers(*patches.shape, key=5, dtype=torch.float64))
    expected = error.square().mean(dim=(1, 2)) / (2 * 0.05)
    off = (value(patches + error) / expected - 1).abs().max()
    yield Measurement("errors below beta: from MSE / (2 beta), relative", float(off.detach()), 1e-9)
    large = (value(patches + 10 * error) / (100 * expected) - 1).abs().min()
    yield Measurement("control: the same for errors above beta", float(large.detach()), 0.1, ">=")


@torch.no_grad()
def invert(loss: Align, mixing: Tensor) -> None:
    """Set the MLP of two layers to the inverse of `mixing`: silu(z) - silu(-z) = z."""
    inverse, unit = torch.linalg.inv(mixing), torch.eye(len(mixing), dtype=mixing.dtype)
    weights = {"head.mlp.0.weight": torch.cat([inverse, -inverse]), "head.mlp.2.weight": torch.cat([unit, -unit], 1)}
    for name, parameter in loss.named_parameters():
        parameter.copy_(weights.get(name, torch.zeros_like(parameter)))


def published_alignment(context: CheckContext) -> Iterator[Measurement]:
    """Compare distances, gradients and head with the published SRA, and the projection loss with REPA."""
    stored = published(context, "align_a")
    student, target = stored.inputs["student_feat"], stored.inputs["teacher_feat"]
    ours: dict[str, Tensor] = {"sra/ap_head": published_head(stored)(student, None)}
    forms = {"sml1": {"metric": "smooth_l1"}, "l2": {"metric": "mse"}, "cos": {"axis": "token"}}
    for form, settings in forms.items():
        leaf = student.clone().requires_grad_()
        mean = compared(leaf, target, **settings).mean()
        ours[f"sra/{form}_mean"] = mean
        if form != "sml1":  # whose gradients are too small to compare
            (ours[f"sra/{form}_grad_student"],) = torch.autograd.grad(mean, leaf)
    encoders = range(stored.meta["constructor"]["REPA"]["encoders"])
    values = [compared(stored.inputs[f"repa_zt{i}"], stored.inputs[f"repa_z{i}"]).mean() - 1 for i in encoders]
    ours["repa/projection"] = torch.stack(values).mean()
    yield from parity("align_a", ours, stored)


def compared(student: Tensor, target: Tensor, **settings: Any) -> Tensor:
    """Return the loss of given tokens [B, n, D], [B]."""
    widths: dict[Tap, int] = {TAP: student.shape[2], TARGET_TAP: target.shape[2]}
    loss = build_loss(widths, tap=TAP, target_tap=TARGET_TAP, **{"head": "none", **settings})
    given = torch.zeros(len(student), *fixtures.IMAGE, dtype=student.dtype)
    t, labels = torch.ones(len(student), dtype=student.dtype), torch.zeros(len(student), dtype=torch.int64)
    views = {
        name: View(network=name, x=given, t=t, labels=labels, x0=given, noise=given) for name in ("student", "teacher")
    }
    outputs = {
        "student": Outputs(taps={TAP: Tokens(student)}),
        "teacher": Outputs(taps={TARGET_TAP: Tokens(target)}),
    }
    value: Tensor = loss(fixtures.context(), views, outputs)
    return value


def published_head(stored: Stored) -> torch.nn.Module:
    """Build our head with their weights."""
    named = {"linear1": "head.mlp.0", "linear2": "head.mlp.2"}
    weights = {f"{named[layer]}.{part}": stored.state[f"ap_head.{layer}.{part}"] for layer in named for part in PARTS}
    width, target = weights["head.mlp.0.weight"].shape[1], weights["head.mlp.2.weight"].shape[0]
    loss = build_loss({TAP: width, TARGET_TAP: target}, tap=TAP, target_tap=TARGET_TAP)
    loss.load_state_dict(weights)
    return loss.head
