"""What `sddit-run verify` measures of SD-DiT's pairs, loss and teacher, beside closed forms and published numbers."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sddit.interfaces import CheckContext, Measurement, Outputs, View, Want
from sddit.testing import fixtures as things
from sddit.testing.toys.network import ToyAttention, ToyBackbone
from sddit.testing.toys.params import ToyAttentionParams, ToyBackboneParams
from sddit.training.ema import Teacher
from sddit.training.student import observe
from sddit.value_schedules import Ramp, value_at
from sddit.verify.published import Stored, parity, published
from sddit_discrimination.head import Head
from sddit_discrimination.loss import Discrimination, cross_entropy, log_assignments
from sddit_discrimination.pairs import PfOde
from sddit_discrimination.params import DiscriminationParams, PfOdeParams

TINY: dict[str, Any] = {"prototypes": 16, "hidden": 12, "bottleneck": 8}
WANT = Want(taps=("encoder",), cls=True)
MOMENTUM, UPDATES = 0.9, 5


# Pairs --------------------------------------------------------------------------------------------------------------


def ray(context: CheckContext) -> Iterator[Measurement]:
    """Both views lie on one ray from the image: x_T - x0 = (sigma_T / sigma_S) (x_S - x0), the exact PF-ODE of one image."""
    for mode in ("fixed", "below", "offset", "same"):
        views = views_of(PfOdeParams(teacher_noise=mode))
        student, teacher = views["student"], views["teacher"]
        share = (teacher.t / student.t)[:, None, None, None]
        off = (teacher.x - teacher.x0) - share * (student.x - student.x0)
        yield Measurement(f"{mode}: the teacher's view beside the ray", float(off.abs().max()), 1e-12)
        above = float((teacher.t > student.t).sum())
        if mode != "fixed":
            yield Measurement(f"{mode}: teacher's levels above the student's", above, 0)


def views_of(params: PfOdeParams) -> dict[str, View]:
    """The two views of a tiny batch, float64."""
    ctx = things.context()
    return PfOde(params, grid=things.GRID)(things.batch(torch.float64), ctx.draws, ctx.schedule, ctx)


# Teacher ------------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Pair:
    """A student, its term and its teacher, float64."""

    backbone: nn.Module
    term: Discrimination
    teacher: Teacher


def pair() -> Pair:
    """A toy backbone under a tiny discrimination term, with no weight at zero."""
    params, shapes = ToyBackboneParams(hidden=12, patch=2), things.shapes()
    with things.default_dtype(torch.float64):
        backbone = ToyBackbone(
            params,
            image=shapes.image,
            num_classes=shapes.num_classes,
            outputs=1,
            attention=ToyAttention(ToyAttentionParams()),
        )
        term = Discrimination(DiscriminationParams(**TINY), widths={"encoder": 12})
    things.randomised(backbone, scale=0.3)
    things.randomised(term, scale=0.3)
    return Pair(backbone, term, Teacher(backbone, {"term": term}, ("encoder",)))


def loss_of(made: Pair, *, constant: bool = False) -> Tensor:
    """One forward pass. With `constant` the teacher's numbers reach the term as plain copies."""
    ctx, views = things.context(averaged=made.teacher.modules["term"]), views_of(PfOdeParams())
    outputs = {
        "student": observe(made.backbone, ctx.schedule, views["student"], WANT, None),
        "teacher": observe(made.teacher.backbone, ctx.schedule, views["teacher"], WANT, None),
    }
    if constant:
        outputs["teacher"] = copied(outputs["teacher"])
    value: Tensor = made.term(ctx, views, outputs)
    return value.mean()


def copied(outputs: Outputs) -> Outputs:
    """The same numbers with no past."""
    for tokens in outputs.taps.values():
        tokens.patch = tokens.patch.detach().clone()
        tokens.cls = None if tokens.cls is None else tokens.cls.detach().clone()
    return outputs


def weights_of(teacher: Teacher) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in teacher.tensors().items()}


def teacher(context: CheckContext) -> Iterator[Measurement]:
    """No gradient reaches the teacher, nothing moves it but its average, and that average is the closed form."""
    made = pair()
    before = weights_of(made.teacher)
    torch.autograd.backward(loss_of(made))
    modules = [made.teacher.backbone, *made.teacher.modules["term"].values()]
    given = sum(p.grad is not None or p.requires_grad for module in modules for p in module.parameters())
    yield Measurement("teacher's parameters with a gradient", given, 0)
    yield Measurement("teacher's tensors that a backward pass moved", moved(before, weights_of(made.teacher)), 0)
    learned = gradient(made)
    yield Measurement("student's gradient, in size", float(learned.norm()), 1e-6, ">=")
    again = pair()
    torch.autograd.backward(loss_of(again, constant=True))
    same = float((gradient(again) - learned).abs().max())
    yield Measurement("student's gradient beside that of a constant teacher", same, 1e-12)
    yield Measurement(f"the average after {UPDATES} updates beside its closed form", closed_form(made, before), 1e-12)


def gradient(made: Pair) -> Tensor:
    """That of backbone and head, in a row."""
    parameters = [*made.backbone.parameters(), *made.term.parameters()]
    return torch.cat([p.grad.flatten() for p in parameters if p.grad is not None])


def moved(before: dict[str, Tensor], after: dict[str, Tensor]) -> float:
    return float(sum(not torch.equal(before[name], after[name]) for name in before))


@torch.no_grad()
def closed_form(made: Pair, first: dict[str, Tensor]) -> float:
    """w_T = m^T w_0 + (1 - m) sum_i m^(T - 1 - i) w_i over the student's weights after each step; the largest distance."""
    expected = {name: MOMENTUM**UPDATES * value for name, value in first.items()}
    for step in range(UPDATES):
        for key, parameter in enumerate([*made.backbone.parameters(), *made.term.parameters()]):
            parameter.add_(0.1 * things.numbers(*parameter.shape, key=100 * step + key, dtype=torch.float64))
        made.teacher.update(made.backbone, {"term": made.term}, MOMENTUM)
        share = (1 - MOMENTUM) * MOMENTUM ** (UPDATES - 1 - step)
        now = {f"backbone.{name}": value for name, value in made.backbone.state_dict().items()}
        now |= {f"term.{name}": value for name, value in made.term.state_dict().items()}
        expected = {name: value + share * now[name] for name, value in expected.items()}
    found = made.teacher.tensors()
    return max(float((found[name] - value).abs().max()) for name, value in expected.items())


# Loss ---------------------------------------------------------------------------------------------------------------


def entropies(context: CheckContext) -> Iterator[Measurement]:
    """Assignments add up to 1; CE(p, q) is ln K for a uniform student, and above H(p) = CE(p, p) for another than p."""
    logits = things.numbers(64, 32, dtype=torch.float64)
    log_p = log_assignments(logits, 0.07)
    p, own = log_p.exp(), cross_entropy(log_p.exp(), log_p)
    uniform = cross_entropy(p, log_assignments(torch.zeros_like(logits), 0.1))
    yield Measurement("uniform student, from ln K", float((uniform - math.log(32)).abs().max()), 1e-12)
    yield Measurement("the teacher's assignments, summed, from 1", float((p.sum(-1) - 1).abs().max()), 1e-12)
    other = cross_entropy(p, log_assignments(things.numbers(64, 32, key=1, dtype=torch.float64), 0.1))
    yield Measurement("least excess of another assignment", float((other - own).min()), 0, ">=")
    low = log_assignments(logits.bfloat16(), 0.07)
    yield Measurement("bf16 logits whose softmax is not in float32", float(low.dtype != torch.float32), 0)


TEACHER_TEMP = Ramp(start=0.04, end=0.07, until=29)  # a warm-up of 30 epochs, both ends included
STUDENT_TEMP = 0.1
IMAGES = 4


def published_losses(context: CheckContext) -> Iterator[Measurement]:
    """The head, loss and centres of DINO over three iterations, and the temperatures and momentum by step."""
    stored = published(context, "ssl_a")
    yield from parity("ssl_a", {"dino_head/vectors": dino_head(stored)(stored.inputs["head_x"], "cls")}, stored)
    losses, centres = dino_sequence(stored)
    epochs = stored.meta["constructor"]["epochs"]
    student, given, center = (stored.inputs[f"dino_{name}"][0] for name in ("student", "teacher", "center0"))
    by_epoch = torch.stack([dino_loss(student, given, center, value_at(TEACHER_TEMP, e, 100)) for e in epochs])
    yield from parity(
        "ssl_a",
        {"dino/loss_by_epoch": by_epoch, "dino/loss_sequence": losses, "dino/center_sequence": centres},
        stored,
    )
    momentum = Ramp(start=0.996, end=1.0, shape="cosine")
    schedules = {
        "schedule/teacher_temp": [value_at(TEACHER_TEMP, e, 100) for e in range(100)],
        "schedule/momentum": [value_at(momentum, i, 500) for i in range(500)],
    }
    yield from parity("ssl_a", {k: torch.tensor(v, dtype=torch.float64) for k, v in schedules.items()}, stored)


def dino_head(stored: Stored) -> Head:
    """Our head with the weights of theirs, whose prototypes have no gain."""
    weights = {k.removeprefix("dino_head."): v for k, v in stored.state.items() if k.startswith("dino_head.")}
    ours = {k.replace("last_layer.", "last."): v for k, v in weights.items() if not k.endswith("weight_g")}
    params = DiscriminationParams(
        prototypes=len(ours["last.weight_v"]),
        hidden=len(ours["mlp.0.weight"]),
        bottleneck=len(ours["mlp.4.weight"]),
        layers=3,
        norm_last_layer=True,
    )
    with things.default_dtype(torch.float64):
        head = Head(params, ours["mlp.0.weight"].shape[1])
    head.load_state_dict(ours)
    return head


def dino_loss(student: Tensor, given: Tensor, center: Tensor, temperature: float) -> Tensor:
    """DINO's pairing: each teacher view with each other student view; logits are [views * images, K], view by view."""
    terms = [
        cross_entropy(log_assignments(t, temperature, center).exp(), log_assignments(s, STUDENT_TEMP)).mean()
        for q, t in enumerate(given.split(IMAGES))  # type: ignore[no-untyped-call]  # untyped in torch
        for v, s in enumerate(student.split(IMAGES))  # type: ignore[no-untyped-call]
        if v != q
    ]
    return torch.stack(terms).mean()


def dino_sequence(stored: Stored) -> tuple[Tensor, Tensor]:
    """Losses and centres over the stored iterations, the centre moved by our term."""
    start = stored.inputs["dino_center0"]
    params = DiscriminationParams(prototypes=start.numel(), hidden=4, bottleneck=4, patch_weight=0.0)
    with things.default_dtype(torch.float64):
        term = Discrimination(params, widths={"encoder": 4})
    center = term.get_buffer("center_cls")
    center.copy_(start.flatten())
    temperature = value_at(TEACHER_TEMP, stored.meta["constructor"]["epochs"][1], 100)
    losses, centres = [], []
    for student, given in zip(stored.inputs["dino_student"], stored.inputs["dino_teacher"], strict=True):
        losses.append(dino_loss(student, given, center, temperature))
        term.stage({"cls": given[:, None]})
        term.after_step(things.context())
        centres.append(center.clone())
    return torch.stack(losses), torch.stack(centres)
