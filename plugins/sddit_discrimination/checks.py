"""Measure SD-DiT's pairs, loss and teacher for `sddit-run verify`, against closed forms and published numbers."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sddit import Backbone
from sddit.diffusion.preconditioning import denoise_view
from sddit.interfaces import CheckContext, Measurement, Outputs, View
from sddit.losses import Losses
from sddit.testing import fixtures
from sddit.testing.teacher import Teacher
from sddit.testing.toys.network import ToyAttention, ToyBackbone
from sddit.testing.toys.params import ToyAttentionParams, ToyBackboneParams
from sddit.value_schedules import Ramp, value_at
from sddit.verify.published import Stored, parity, published
from sddit_discrimination.head import Head
from sddit_discrimination.loss import Discrimination, cross_entropy, log_assignments
from sddit_discrimination.pairs import PfOde
from sddit_discrimination.params import DiscriminationParams, PfOdeParams

TINY: dict[str, Any] = {"prototypes": 16, "hidden": 12, "bottleneck": 8}
MOMENTUM, UPDATES = 0.9, 5


def ray(context: CheckContext) -> Iterator[Measurement]:
    """Measure that x_T - x0 = (sigma_T / sigma_S) (x_S - x0), the exact probability-flow ODE of one image."""
    for mode in ("fixed", "below", "offset", "same"):
        views = views_of(PfOdeParams(teacher_noise=mode))
        student, teacher = views["student"], views["teacher"]
        ratio = (teacher.t / student.t)[:, None, None, None]
        error = (teacher.x - teacher.x0) - ratio * (student.x - student.x0)
        yield Measurement(f"{mode}: distance of the teacher's view from the ray", float(error.abs().max()), 1e-12)
        above = float((teacher.t > student.t).sum())
        if mode != "fixed":
            yield Measurement(f"{mode}: teacher's noise levels above the student's", above, 0)


def views_of(params: PfOdeParams) -> dict[str, View]:
    """Return the two views of a tiny batch, float64."""
    ctx = fixtures.context()
    return PfOde(params, grid=fixtures.GRID)(fixtures.batch(torch.float64), ctx.draws, ctx.schedule, ctx)


@dataclass(slots=True)
class Pair:
    """A student, its loss and its teacher, float64."""

    backbone: Backbone
    loss: Discrimination
    teacher: Teacher


def build_pair() -> Pair:
    """Build a toy backbone with a tiny discrimination loss, without zero weights."""
    params, shapes = ToyBackboneParams(hidden=12, patch=2), fixtures.shapes()
    with fixtures.default_dtype(torch.float64):
        backbone = ToyBackbone(
            params,
            image=shapes.image,
            num_classes=shapes.num_classes,
            outputs=1,
            attention=ToyAttention(ToyAttentionParams()),
        )
        loss = Discrimination(DiscriminationParams(**TINY), widths={"encoder": 12})
    fixtures.randomised(backbone, scale=0.3)
    fixtures.randomised(loss, scale=0.3)
    return Pair(backbone, loss, Teacher(backbone, Losses({"loss": loss}), ("encoder",)))


def loss_of(pair: Pair, *, constant: bool = False) -> Tensor:
    """Run one forward pass. With `constant`, the loss gets detached copies of the teacher's outputs."""
    ctx, views = fixtures.context(ema_modules=pair.teacher.modules["loss"]), views_of(PfOdeParams())
    networks = {"student": pair.backbone, "teacher": pair.teacher.backbone}
    outputs = {
        name: denoise_view(network, ctx.schedule, views[name], ("encoder",), output=False)
        for name, network in networks.items()
    }
    if constant:
        outputs["teacher"] = detached(outputs["teacher"])
    value: Tensor = pair.loss(ctx, views, outputs)
    return value.mean()


def detached(outputs: Outputs) -> Outputs:
    """Detach and copy the tokens in place."""
    for tokens in outputs.taps.values():
        tokens.patch = tokens.patch.detach().clone()
        tokens.cls = None if tokens.cls is None else tokens.cls.detach().clone()
    return outputs


def weights_of(teacher: Teacher) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in teacher.tensors().items()}


def teacher(context: CheckContext) -> Iterator[Measurement]:
    """Measure that the teacher gets no gradient and changes only by its moving average, which has the closed form."""
    pair = build_pair()
    before = weights_of(pair.teacher)
    torch.autograd.backward(loss_of(pair))
    modules = [pair.teacher.backbone, *pair.teacher.modules["loss"].values()]
    count = sum(p.grad is not None or p.requires_grad for module in modules for p in module.parameters())
    yield Measurement("teacher's parameters with a gradient", count, 0)
    yield Measurement("teacher's tensors changed by a backward pass", changed(before, weights_of(pair.teacher)), 0)
    grad = gradient(pair)
    yield Measurement("norm of the student's gradient", float(grad.norm()), 1e-6, ">=")
    again = build_pair()
    torch.autograd.backward(loss_of(again, constant=True))
    difference = float((gradient(again) - grad).abs().max())
    yield Measurement("student's gradient, difference from that of a constant teacher", difference, 1e-12)
    yield Measurement(
        f"the average after {UPDATES} updates, difference from its closed form", closed_form(pair, before), 1e-12
    )


def gradient(pair: Pair) -> Tensor:
    """Return the concatenated gradient of backbone and head."""
    parameters = [*pair.backbone.parameters(), *pair.loss.parameters()]
    return torch.cat([p.grad.flatten() for p in parameters if p.grad is not None])


def changed(before: dict[str, Tensor], after: dict[str, Tensor]) -> float:
    return float(sum(not torch.equal(before[name], after[name]) for name in before))


@torch.no_grad()
def closed_form(pair: Pair, first: dict[str, Tensor]) -> float:
    """Return the error of w_T = m^T w_0 + (1 - m) sum_i m^(T - 1 - i) w_i for student weights w_i after each step."""
    expected = {name: MOMENTUM**UPDATES * value for name, value in first.items()}
    for step in range(UPDATES):
        for key, parameter in enumerate([*pair.backbone.parameters(), *pair.loss.parameters()]):
            parameter.add_(0.1 * fixtures.numbers(*parameter.shape, key=100 * step + key, dtype=torch.float64))
        pair.teacher.update(pair.backbone, Losses({"loss": pair.loss}), MOMENTUM)
        weight = (1 - MOMENTUM) * MOMENTUM ** (UPDATES - 1 - step)
        now = {f"backbone.{name}": value for name, value in pair.backbone.state_dict().items()}
        now |= {f"loss.{name}": value for name, value in pair.loss.state_dict().items()}
        expected = {name: value + weight * now[name] for name, value in expected.items()}
    found = pair.teacher.tensors()
    return max(float((found[name] - value).abs().max()) for name, value in expected.items())


def entropies(context: CheckContext) -> Iterator[Measurement]:
    """Measure that assignments sum to 1, CE(p, uniform) = ln K, and CE(p, q) > CE(p, p) for other q."""
    logits = fixtures.numbers(64, 32, dtype=torch.float64)
    log_p = log_assignments(logits, 0.07)
    p, own = log_p.exp(), cross_entropy(log_p.exp(), log_p)
    uniform = cross_entropy(p, log_assignments(torch.zeros_like(logits), 0.1))
    yield Measurement("uniform student, from ln K", float((uniform - math.log(32)).abs().max()), 1e-12)
    yield Measurement("the teacher's assignments, summed, from 1", float((p.sum(-1) - 1).abs().max()), 1e-12)
    other = cross_entropy(p, log_assignments(fixtures.numbers(64, 32, key=1, dtype=torch.float64), 0.1))
    yield Measurement("minimum excess of another assignment", float((other - own).min()), 0, ">=")
    low = log_assignments(logits.bfloat16(), 0.07)
    yield Measurement("bf16 logits whose softmax is not in float32", float(low.dtype != torch.float32), 0)


TEACHER_TEMP = Ramp(start=0.04, end=0.07, until=29)  # warmup of 30 epochs, both ends included
STUDENT_TEMP = 0.1
IMAGES = 4


def published_losses(context: CheckContext) -> Iterator[Measurement]:
    """Compare head, loss and centers with DINO over three iterations, and temperatures and momentum by step."""
    stored = published(context, "ssl_a")
    yield from parity("ssl_a", {"dino_head/vectors": dino_head(stored)(stored.inputs["head_x"], "cls")}, stored)
    losses, centers = dino_sequence(stored)
    epochs = stored.meta["constructor"]["epochs"]
    student, teacher, center = (stored.inputs[f"dino_{name}"][0] for name in ("student", "teacher", "center0"))
    by_epoch = torch.stack([dino_loss(student, teacher, center, value_at(TEACHER_TEMP, e, 100)) for e in epochs])
    yield from parity(
        "ssl_a",
        {"dino/loss_by_epoch": by_epoch, "dino/loss_sequence": losses, "dino/center_sequence": centers},
        stored,
    )
    momentum = Ramp(start=0.996, end=1.0, shape="cosine")
    schedules = {
        "schedule/teacher_temp": [value_at(TEACHER_TEMP, e, 100) for e in range(100)],
        "schedule/momentum": [value_at(momentum, i, 500) for i in range(500)],
    }
    yield from parity("ssl_a", {k: torch.tensor(v, dtype=torch.float64) for k, v in schedules.items()}, stored)


def dino_head(stored: Stored) -> Head:
    """Build our head with their weights; their prototypes have no gain."""
    weights = {k.removeprefix("dino_head."): v for k, v in stored.state.items() if k.startswith("dino_head.")}
    ours = {k.replace("last_layer.", "last."): v for k, v in weights.items() if not k.endswith("weight_g")}
    params = DiscriminationParams(
        prototypes=len(ours["last.weight_v"]),
        hidden=len(ours["mlp.0.weight"]),
        bottleneck=len(ours["mlp.4.weight"]),
        layers=3,
        norm_last_layer=True,
    )
    with fixtures.default_dtype(torch.float64):
        head = Head(params, ours["mlp.0.weight"].shape[1])
    head.load_state_dict(ours)
    return head


def dino_loss(student: Tensor, teacher: Tensor, center: Tensor, temperature: float) -> Tensor:
    """Compare each teacher view with each other student view, as DINO; logits are [views * images, K], view by view."""
    losses = [
        cross_entropy(log_assignments(t, temperature, center).exp(), log_assignments(s, STUDENT_TEMP)).mean()
        for q, t in enumerate(teacher.split(IMAGES))  # type: ignore[no-untyped-call]  # untyped in torch
        for v, s in enumerate(student.split(IMAGES))  # type: ignore[no-untyped-call]
        if v != q
    ]
    return torch.stack(losses).mean()


def dino_sequence(stored: Stored) -> tuple[Tensor, Tensor]:
    """Return losses and centers over the stored iterations, with the center updated by our loss."""
    start = stored.inputs["dino_center0"]
    params = DiscriminationParams(prototypes=start.numel(), hidden=4, bottleneck=4, patch_weight=0.0)
    with fixtures.default_dtype(torch.float64):
        loss = Discrimination(params, widths={"encoder": 4})
    center = loss.get_buffer("center_cls")
    center.copy_(start.flatten())
    temperature = value_at(TEACHER_TEMP, stored.meta["constructor"]["epochs"][1], 100)
    losses, centers = [], []
    for student, teacher in zip(stored.inputs["dino_student"], stored.inputs["dino_teacher"], strict=True):
        losses.append(dino_loss(student, teacher, center, temperature))
        loss.stage({"cls": teacher[:, None]})
        loss.after_step(fixtures.context())
        centers.append(center.clone())
    return torch.stack(losses), torch.stack(centers)
