"""Compare with DINO and iBOT (set ssl_a): heads, losses, gradients, centers, schedules. Float64, 1e-9."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from sddit.interfaces import Context, OptimizerParams
from sddit.training.optimization import clip_gradients
from sddit.value_schedules import Ramp, Value, value_at
from sddit_discrimination.head import Head
from sddit_discrimination.loss import Discrimination, cross_entropy, log_assignments
from sddit_discrimination.params import DiscriminationParams

TEMP_END = 29  # linspace over 30 warm-up epochs includes both ends
TEACHER_TEMP = Ramp(start=0.04, end=0.07, until=TEMP_END)
STUDENT_TEMP = 0.1
IMAGES = 4


def close(ours: Tensor, theirs: Tensor, tolerance: float = 1e-9) -> None:
    assert ours.dtype == theirs.dtype == torch.float64
    assert ours.shape == theirs.shape
    assert theirs.abs().max() > 1e-3, "a comparison with zeros proves nothing"
    error = (ours - theirs).abs() / theirs.abs().clamp(min=1)
    assert error.max() <= tolerance, f"largest relative difference {error.max():.3g}"


@contextmanager
def float64() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


def head_of(state: dict[str, Tensor], prefix: str, *, patch: bool = False) -> Head:
    """Return our head with their weights."""
    weights = {key.removeprefix(f"{prefix}."): value for key, value in state.items() if key.startswith(f"{prefix}.")}
    names = {"last_layer.": "last.", "last_layer2.": "patch_last."}
    for theirs, ours in names.items():
        weights = {key.replace(theirs, ours): value for key, value in weights.items()}
    frozen = bool((weights["last.weight_g"] == 1).all())
    if not patch:
        weights = {key: value for key, value in weights.items() if not key.startswith("patch_last.")}
    if frozen:
        weights = {key: value for key, value in weights.items() if not key.endswith("weight_g")}
    linears = sorted(key for key in weights if key.startswith("mlp.") and key.endswith("weight"))
    params = DiscriminationParams(
        prototypes=len(weights["last.weight_v"]),
        hidden=len(weights[linears[0]]),
        bottleneck=len(weights[linears[-1]]),
        layers=len(linears),
        norm_last_layer=frozen,
        shared_head=not patch,
    )
    with float64():
        head = Head(params, width=weights[linears[0]].shape[1])
    if patch:  # theirs may have more or fewer patch prototypes
        assert head.patch_last is not None
        head.patch_last.weight_v = torch.nn.Parameter(weights["patch_last.weight_v"].clone())
        if not frozen:
            head.patch_last.weight_g = torch.nn.Parameter(weights["patch_last.weight_g"].clone())
    head.load_state_dict(weights)
    return head


@pytest.mark.parametrize("name", ["dino_head", "dino_head_free_gain", "ibot_head", "ibot_head_shared"])
def test_head_on_vectors(published, name: str) -> None:
    numbers = published("ssl_a")
    head = head_of(numbers.state, name)
    close(head(numbers.inputs["head_x"], "cls"), numbers.outputs[f"{name}/vectors"])


@pytest.mark.parametrize(("name", "patch"), [("ibot_head", True), ("ibot_head_shared", False)])
def test_head_on_class_and_patch_tokens(published, name: str, patch: bool) -> None:
    numbers = published("ssl_a")
    head = head_of(numbers.state, name, patch=patch)
    tokens = numbers.inputs["head_tokens"]
    close(head(tokens[:, 0], "cls"), numbers.outputs[f"{name}/cls"])
    close(head(tokens[:, 1:], "patch"), numbers.outputs[f"{name}/patches"])


def test_a_tanh_gelu_is_detected(published) -> None:
    numbers = published("ssl_a")
    head = head_of(numbers.state, "dino_head")
    for index, layer in enumerate(head.mlp):
        if isinstance(layer, torch.nn.GELU):
            head.mlp[index] = torch.nn.GELU(approximate="tanh")
    with pytest.raises(AssertionError, match="largest relative difference"):
        close(head(numbers.inputs["head_x"], "cls"), numbers.outputs["dino_head/vectors"])


def pair_loss(student: Tensor, teacher: Tensor, center: Tensor, tau_t: float) -> Tensor:
    """Pair as DINO: each teacher view with each other student view; logits are [views * images, K], view-major."""
    students, teachers = student.split(IMAGES), teacher.split(IMAGES)
    terms = [
        cross_entropy(log_assignments(t, tau_t, center).exp(), log_assignments(s, STUDENT_TEMP)).mean()
        for q, t in enumerate(teachers)
        for v, s in enumerate(students)
        if v != q
    ]
    return torch.stack(terms).mean()


def patch_loss(student: Tensor, teacher: Tensor, center: Tensor, tau_t: float, masks: Tensor) -> Tensor:
    """Pair as iBOT: the same view, mean over masked tokens, then images, then views. masks: [views, images, h, w]."""
    entropies = cross_entropy(log_assignments(teacher, tau_t, center).exp(), log_assignments(student, STUDENT_TEMP))
    hidden = masks.flatten(2).flatten(0, 1).double()  # [views * images, N]
    return ((entropies * hidden).sum(1) / hidden.sum(1).clamp(min=1)).mean()


def temperature(epoch: int, schedule: Value = TEACHER_TEMP) -> float:
    return value_at(schedule, epoch, 100)


def centre_of(kind: str, start: Tensor) -> Discrimination:
    """Return a loss that has only the center of `kind`, with value `start`."""
    weights = {"cls_weight": 0.0, "patch_weight": 0.0, f"{kind}_weight": 1.0}
    params = DiscriminationParams(prototypes=start.numel(), hidden=4, bottleneck=4, **weights)
    with float64():
        term = Discrimination(params, widths={"encoder": 4})
    term.get_buffer(f"center_{kind}").copy_(start.flatten())
    return term


def context() -> Context:
    return Context(step=0, total_steps=100, schedule=None, draws=None, num_classes=10)


def test_dino_loss_by_epoch_and_gradient(published) -> None:
    numbers = published("ssl_a")
    student = numbers.inputs["dino_student"][0].requires_grad_()
    teacher, center = numbers.inputs["dino_teacher"][0], numbers.inputs["dino_center0"][0]
    losses = [pair_loss(student, teacher, center, temperature(e)) for e in numbers.meta["constructor"]["epochs"]]
    close(torch.stack(losses), numbers.outputs["dino/loss_by_epoch"])
    # the stored gradient is that of the sequence's first loss, at epochs[1]
    (gradient,) = torch.autograd.grad(losses[1], student)
    close(gradient, numbers.outputs["dino/grad_student"])


def test_dino_center_over_three_iterations(published) -> None:
    numbers = published("ssl_a")
    term = centre_of("cls", numbers.inputs["dino_center0"])
    tau_t = temperature(numbers.meta["constructor"]["epochs"][1])
    losses, centres = [], []
    for student, teacher in zip(numbers.inputs["dino_student"], numbers.inputs["dino_teacher"], strict=True):
        losses.append(pair_loss(student, teacher, term.get_buffer("center_cls"), tau_t))
        term.stage({"cls": teacher[:, None]})
        term.after_step(context())
        centres.append(term.get_buffer("center_cls").clone())
    close(torch.stack(losses), numbers.outputs["dino/loss_sequence"])
    close(torch.stack(centres), numbers.outputs["dino/center_sequence"])


def ibot_terms(inputs: dict[str, Tensor], i: int, center: Tensor, center2: Tensor, tau_t: float) -> Tensor:
    """Return the [class, patch] loss of iteration i."""
    student_cls = torch.cat([inputs["ibot_student_cls"][i], inputs["ibot_student_local_cls"][i]])
    cls = pair_loss(student_cls, inputs["ibot_teacher_cls"][i], center, tau_t)
    patch = patch_loss(
        inputs["ibot_student_patch"][i], inputs["ibot_teacher_patch"][i], center2, tau_t, inputs["ibot_masks"][i]
    )
    return torch.stack([cls, patch])


def test_ibot_losses_by_epoch_weights_and_gradients(published) -> None:
    numbers = published("ssl_a")
    inputs, outputs = numbers.inputs, numbers.outputs
    for name in ("ibot_student_cls", "ibot_student_patch"):
        inputs[name].requires_grad_()
    center, center2 = inputs["ibot_center0"][0], inputs["ibot_center2_0"][0, 0]
    epochs = numbers.meta["constructor"]["epochs"]
    terms = torch.stack([ibot_terms(inputs, 0, center, center2, temperature(e)) for e in epochs])  # [epochs, 2]
    close(terms[:, 0], outputs["ibot/cls_by_epoch"])
    close(terms[:, 1], outputs["ibot/patch_by_epoch"])
    close(terms.sum(1), outputs["ibot/loss_by_epoch"])
    weighted = terms[0] * torch.tensor([0.5, 2.0])
    close(torch.cat([weighted, weighted.sum()[None]]), outputs["ibot/lambdas_0.5_2.0"])
    cls, patch = torch.autograd.grad(terms[1].sum(), [inputs["ibot_student_cls"], inputs["ibot_student_patch"]])
    close(cls[0], outputs["ibot/grad_student_cls"])
    close(patch[0], outputs["ibot/grad_student_patch"])


def test_ibot_centers_over_three_iterations(published) -> None:
    numbers = published("ssl_a")
    inputs, outputs = numbers.inputs, numbers.outputs
    cls, patch = centre_of("cls", inputs["ibot_center0"]), centre_of("patch", inputs["ibot_center2_0"])
    tau_t = temperature(numbers.meta["constructor"]["epochs"][1])
    losses, centres, centres2 = [], [], []
    for i in range(3):
        losses.append(ibot_terms(inputs, i, cls.get_buffer("center_cls"), patch.get_buffer("center_patch"), tau_t))
        cls.stage({"cls": inputs["ibot_teacher_cls"][i][:, None]})
        patch.stage({"patch": inputs["ibot_teacher_patch"][i]})
        cls.after_step(context())
        patch.after_step(context())
        centres.append(cls.get_buffer("center_cls").clone())
        centres2.append(patch.get_buffer("center_patch").clone())
    terms = torch.stack(losses)
    close(terms[:, 0], outputs["ibot/cls_sequence"])
    close(terms[:, 1], outputs["ibot/patch_sequence"])
    close(terms.sum(1), outputs["ibot/loss_sequence"])
    close(torch.stack(centres), outputs["ibot/center_sequence"])
    close(torch.stack(centres2)[:, None], outputs["ibot/center2_sequence"])


def test_using_the_updated_center_is_detected(published) -> None:
    numbers = published("ssl_a")
    term = centre_of("cls", numbers.inputs["dino_center0"])
    teacher = numbers.inputs["dino_teacher"][0]
    term.stage({"cls": teacher[:, None]})
    term.after_step(context())
    late = pair_loss(numbers.inputs["dino_student"][0], teacher, term.get_buffer("center_cls"), temperature(12))
    with pytest.raises(AssertionError, match="largest relative difference"):
        close(late, numbers.outputs["dino/loss_sequence"][0])


def series(schedule: Value, count: int) -> Tensor:
    return torch.tensor([value_at(schedule, i, count) for i in range(count)], dtype=torch.float64)


def test_schedules(published) -> None:
    """They count epochs for temperatures and iterations for the rest; warmups end one before the last."""
    outputs = published("ssl_a").outputs
    temps = series(TEACHER_TEMP, 100)
    close(temps, outputs["schedule/teacher_temp"])
    close(temps, outputs["schedule/teacher_temp_patch"])
    late = series(Ramp(start=0.04, end=0.07, until=TEMP_END), 93)  # mim_start_epoch 7: the same, 7 epochs later
    close(torch.cat([temps[:1].expand(7), late]), outputs["schedule/teacher_temp_patch_mim_start_7"])
    momentum = series(Ramp(start=0.996, end=1.0, shape="cosine"), 500)
    close(momentum, outputs["schedule/momentum"])
    close(momentum, outputs["schedule/momentum_ibot"])
    close(series(Ramp(start=0.04, end=0.4, shape="cosine"), 500), outputs["schedule/weight_decay"])
    warm = series(Ramp(start=0.0, end=5e-4, until=49), 500)[:50]
    fall = series(Ramp(start=5e-4, end=1e-6, shape="cosine"), 450)
    rates = torch.cat([warm, fall]) / 5e-4  # relative, for a comparison of numbers near 1
    close(rates, outputs["schedule/lr"] / 5e-4)


def test_each_gradient_is_clipped_separately(published) -> None:
    numbers = published("ssl_a")
    parameters = [torch.zeros_like(numbers.inputs[f"clip_grads_{i}"]).requires_grad_() for i in (0, 1)]
    ours = {}
    for scope in ("each", "all"):
        for i, parameter in enumerate(parameters):
            parameter.grad = numbers.inputs[f"clip_grads_{i}"].clone()
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters])
        clip_gradients(OptimizerParams(clip=3.0, clip_scope=scope), {"backbone": parameters}, norm)
        ours[scope] = [p.grad.clone() for p in parameters]
    for i in (0, 1):
        close(ours["each"][i], numbers.outputs[f"clip/{i}"])
    assert not torch.allclose(ours["all"][1], numbers.outputs["clip/1"], rtol=1e-2)
