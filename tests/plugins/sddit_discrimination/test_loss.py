"""Test the discrimination loss: identities, gradients, centers, temperatures, precision, cost."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from sddit.evaluation import token_spread
from sddit.interfaces import BackboneParams, Context, Outputs, Shapes, Tokens, View, ViewSpec
from sddit_discrimination import collapse
from sddit_discrimination.loss import Discrimination, log_assignments, log_balanced
from sddit_discrimination.params import DiscriminationParams

B, N, D, K = 6, 16, 8, 12
VISIBLE = torch.stack(
    [torch.randperm(N, generator=torch.Generator().manual_seed(i))[:10].sort().values for i in range(B)]
)


def params(**keys: object) -> DiscriminationParams:
    small = {"prototypes": K, "hidden": 16, "bottleneck": 5, "freeze_last": 0}
    return DiscriminationParams.model_validate(small | keys)


def term_of(**keys: object) -> Discrimination:
    torch.manual_seed(0)
    return Discrimination(params(**keys), widths={"encoder": D, 0.3: D}).double()


def context(term: Discrimination, step: int = 0, mean: Callable[[Tensor], Tensor] = lambda x: x) -> Context:
    """Return a context of a run of 100 steps whose teacher is a copy of the current student."""
    teacher = {"head": copy.deepcopy(term.head).eval().requires_grad_(False)}
    return Context(step=step, total_steps=100, schedule=None, draws=None, num_classes=3, ema_modules=teacher, mean=mean)


def view(network: str, visible: Tensor | None = None, rows: int = B) -> View:
    image = torch.zeros(rows, 1, 4, 4, dtype=torch.float64)
    labels = torch.arange(rows) % 3
    t = torch.ones(rows, dtype=torch.float64)
    return View(network=network, x=image, t=t, labels=labels, x0=image, noise=image, visible=visible)


def tokens(seed: int, visible: Tensor | None = None, rows: int = B) -> Tokens:
    generator = torch.Generator().manual_seed(seed)
    patch = torch.randn(rows, N, D, dtype=torch.float64, generator=generator)
    cls = torch.randn(rows, D, dtype=torch.float64, generator=generator)
    full = Tokens(patch, None, cls)
    return full if visible is None else Tokens(full.at(visible), visible, cls)


def observe(student: Tokens, teacher: Tokens, visible: Tensor | None = None, tap: object = "encoder"):
    """Return (views, outputs) of one pair."""
    rows = len(student.patch)
    views = {"student": view("student", visible, rows), "teacher": view("teacher", None, rows)}
    return views, {"student": Outputs(taps={tap: student}), "teacher": Outputs(taps={tap: teacher})}


def test_the_loss_follows_its_formula() -> None:
    """The cross-entropies written out token by token, at the visible tokens, with nonzero centers."""
    term = term_of(cls_weight=0.7, patch_weight=1.3)
    for name in ("center_cls", "center_patch"):
        term.get_buffer(name).normal_()
    ctx = context(term, step=0)
    student, teacher = tokens(1, VISIBLE), tokens(2)
    ours = term(ctx, *observe(student, teacher, VISIBLE))

    expected = []
    head = term.head
    for b in range(B):
        q = torch.softmax(head(student.cls[b], "cls") / 0.1, -1)
        p = torch.softmax((head(teacher.cls[b], "cls") - term.center_cls) / 0.04, -1)
        value = 0.7 * -(p * q.log()).sum()
        for row, i in enumerate(VISIBLE[b]):
            q = torch.softmax(head(student.patch[b, row], "patch") / 0.1, -1)
            p = torch.softmax((head(teacher.patch[b, i], "patch") - term.center_patch) / 0.04, -1)
            value = value + 1.3 * -(p * q.log()).sum() / 10
        expected.append(value)
    assert ours.shape == (B,)
    torch.testing.assert_close(ours, torch.stack(expected), rtol=1e-12, atol=0)


def test_teacher_tokens_at_wrong_positions_are_detected() -> None:
    term = term_of(cls_weight=0.0)
    student, teacher = tokens(1, VISIBLE), tokens(2)
    right = term(context(term), *observe(student, teacher, VISIBLE))
    shifted = Tokens(teacher.patch.roll(1, dims=1), None, teacher.cls)
    assert (term(context(term), *observe(student, shifted, VISIBLE)) - right).abs().min() > 1e-3


def test_equal_networks_give_the_entropy_of_p() -> None:
    """Student = teacher, equal temperatures, no center, no mask: CE(p, p) = H(p); other tokens give more than H(p)."""
    same, other = tokens(1), tokens(2)
    for kind in ("cls", "patch"):
        weights = {"cls_weight": 0.0, "patch_weight": 0.0, f"{kind}_weight": 1.0}
        term = term_of(centering="none", teacher_temp=0.1, **weights)
        value = term(context(term), *observe(same, same))
        logits = term.head(same.cls[:, None] if kind == "cls" else same.patch, kind)
        log_p = log_assignments(logits, 0.1)
        entropy = -(log_p.exp() * log_p).sum(-1).mean(1)
        torch.testing.assert_close(value, entropy, rtol=1e-12, atol=0)
        assert (term(context(term), *observe(other, same)) > entropy + 1e-4).all()


def test_equal_logits_give_ln_k() -> None:
    term = term_of()
    nn.init.zeros_(term.head.last.weight_g)
    value = term(context(term), *observe(tokens(1), tokens(2)))
    torch.testing.assert_close(value, torch.full_like(value, 2 * math.log(K)), rtol=1e-12, atol=0)


def test_no_gradient_reaches_the_teacher_or_the_centers() -> None:
    term = term_of()
    ctx = context(term)
    student, teacher = tokens(1, VISIBLE), tokens(2)
    leaves = [student.patch, student.cls, teacher.patch, teacher.cls]
    for leaf in leaves:
        leaf.requires_grad_()
    term(ctx, *observe(student, teacher, VISIBLE)).sum().backward()
    assert student.patch.grad is not None and student.patch.grad.abs().min() > 0
    assert student.cls is not None and student.cls.grad is not None
    assert teacher.patch.grad is None and teacher.cls is not None and teacher.cls.grad is None
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in term.parameters())
    assert all(p.grad is None for p in ctx.ema_modules["head"].parameters())
    assert not any(buffer.requires_grad for buffer in term.buffers())


def test_the_teacher_as_a_constant_leaves_the_gradient() -> None:
    """Analytic: d CE / d logits_s = (q - p) / tau_s, which has no path through p."""
    term = term_of(patch_weight=0.0)
    logits_s = torch.randn(B, 1, K, dtype=torch.float64, requires_grad=True)
    logits_t = torch.randn(B, 1, K, dtype=torch.float64, requires_grad=True)
    value = term.cross_entropies(context(term), "cls", logits_s, logits_t, torch.zeros(B, dtype=torch.int64))
    (gradient,) = torch.autograd.grad(value.sum(), logits_s)
    p, q = torch.softmax(logits_t / 0.04, -1), torch.softmax(logits_s / 0.1, -1)
    torch.testing.assert_close(gradient, (q - p) / 0.1, rtol=1e-10, atol=1e-14)


def test_a_decoder_gets_no_gradient_and_the_head_none_from_another_term() -> None:
    encoder, decoder = nn.Linear(D, D).double(), nn.Linear(D, D).double()
    term = term_of()
    h = encoder(tokens(1).patch)
    out = decoder(h)
    term(context(term), *observe(Tokens(h, None, h.mean(1)), tokens(2))).mean().backward(retain_graph=True)
    assert encoder.weight.grad is not None and decoder.weight.grad is None
    term.zero_grad()
    out.square().mean().backward()
    assert decoder.weight.grad is not None
    assert all(p.grad is None for p in term.parameters())


def test_centers_move_after_the_step_to_the_mean_over_tokens_and_batch() -> None:
    term = term_of()
    ctx = context(term)
    teacher = tokens(2)
    before = {name: buffer.clone() for name, buffer in term.named_buffers()}
    term(ctx, *observe(tokens(1, VISIBLE), teacher, VISIBLE))
    assert all(torch.equal(buffer, before[name]) for name, buffer in term.named_buffers())
    term.after_step(ctx)
    head = ctx.ema_modules["head"]
    expected = {
        "center_cls": head(teacher.cls, "cls").mean(0),
        "center_patch": head(teacher.patch, "patch").mean((0, 1)),
    }
    for name, mean in expected.items():
        torch.testing.assert_close(term.get_buffer(name), 0.1 * mean, rtol=1e-12, atol=1e-15)
        assert mean.abs().max() > 1e-3


def test_center_of_half_batches_equals_that_of_the_batch() -> None:
    """In micro-batches, and on two processes with unequal numbers of samples."""
    batch, halves = term_of(), term_of()
    student, teacher = tokens(1, VISIBLE), tokens(2)
    ctx = context(batch)
    batch(ctx, *observe(student, teacher, VISIBLE))
    batch.after_step(ctx)
    for part in (slice(0, 2), slice(2, B)):
        halves(ctx, *_part(student, teacher, part))
    halves.after_step(ctx)
    _same_buffers(batch, halves)

    ranks = [term_of(), term_of()]
    for rank, part in zip(ranks, (slice(0, 2), slice(2, B)), strict=True):
        rank(ctx, *_part(student, teacher, part))
    shares = [_all_reduced(copy.deepcopy(rank)) for rank in ranks]
    for rank in ranks:
        means = iter([torch.stack(values).mean(0) for values in zip(*shares, strict=True)])
        rank.after_step(context(rank, mean=lambda _, means=means: next(means)))
        _same_buffers(batch, rank)


def test_a_mean_of_means_is_detected() -> None:
    """Control: means over unequal halves do not equal the mean of the batch."""
    logits = torch.randn(B, 1, K, dtype=torch.float64)
    wrong = (logits[:2].mean(0) + logits[2:].mean(0)) / 2
    assert (wrong - logits.mean(0)).abs().max() > 1e-3


def _part(student: Tokens, teacher: Tokens, part: slice):
    """Return views and outputs of some rows of the batch."""
    assert student.cls is not None and teacher.cls is not None
    visible = VISIBLE[part]
    rows = Tokens(student.patch[part], visible, student.cls[part]), Tokens(teacher.patch[part], None, teacher.cls[part])
    return observe(*rows, visible)


def _all_reduced(rank: Discrimination) -> list[Tensor]:
    """Return the tensors that a process passes to the all-reduce, in order."""
    given: list[Tensor] = []

    def mean(x: Tensor) -> Tensor:
        given.append(x)
        return x

    rank.after_step(context(rank, mean=mean))
    return given


def _same_buffers(left: Discrimination, right: Discrimination) -> None:
    for name, buffer in left.named_buffers():
        assert buffer.abs().max() > 0
        torch.testing.assert_close(right.get_buffer(name), buffer, rtol=1e-12, atol=1e-15)


def test_a_discarded_step_leaves_no_trace() -> None:
    term = term_of()
    ctx = context(term)
    term(ctx, *observe(tokens(1), tokens(2)))
    term.discard()
    term.after_step(ctx)
    assert all(torch.equal(buffer, torch.zeros_like(buffer)) for buffer in term.buffers())


def test_without_centering_there_are_no_centers() -> None:
    term = term_of(centering="none")
    assert not list(term.buffers())
    term(context(term), *observe(tokens(1), tokens(2)))
    term.after_step(context(term))
    assert "cls_center_norm" not in term.diagnostics()


def test_balanced_assignments_by_hand() -> None:
    """Three iterations on exp(l / tau) as in SwAV: columns to one sum, rows to 1 (arXiv:2006.09882)."""
    logits = 0.3 * torch.randn(B, N, K, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    q = (logits / 0.1).exp().flatten(0, 1)  # [B N, K]
    for _ in range(3):
        q = q / q.sum(0, keepdim=True)
        q = q / q.sum(1, keepdim=True)
    found = log_balanced(logits, 0.1, 3, lambda x: x).exp().flatten(0, 1)
    torch.testing.assert_close(found, q, rtol=1e-12, atol=0)
    assert not torch.allclose(found, (logits / 0.1).softmax(-1).flatten(0, 1), rtol=1e-2)


def test_many_iterations_balance_all_prototypes_at_any_temperature() -> None:
    logits = torch.randn(B, N, K, dtype=torch.float64, generator=torch.Generator().manual_seed(4)) + torch.arange(K)
    balanced = log_balanced(logits, 1.0, 2000, lambda x: x).exp().flatten(0, 1)
    torch.testing.assert_close(balanced.mean(0), torch.full((K,), 1 / K, dtype=torch.float64), rtol=1e-6, atol=0)
    assert logits.softmax(-1).flatten(0, 1).mean(0).max() > 2 / K
    assert log_balanced(logits, 1e-4, 3, lambda x: x).exp().sum(-1).allclose(torch.ones(B, N, dtype=torch.float64))


def test_balancing_over_ranks_equals_balancing_the_batch() -> None:
    """`mean` returns the average over both ranks; the columns of the other rank are computed here."""
    logits = torch.randn(2 * B, N, K, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    batch = log_balanced(logits, 0.2, 3, lambda x: x)
    with ThreadPoolExecutor(2) as pool:
        mean = mean_over(2)
        halves = pool.map(lambda half: log_balanced(half, 0.2, 3, mean), logits.chunk(2))
        torch.testing.assert_close(torch.cat(list(halves)), batch, rtol=1e-12, atol=1e-12)
    separate = torch.cat([log_balanced(half, 0.2, 3, lambda x: x) for half in logits.chunk(2)])
    assert not torch.allclose(separate, batch, rtol=1e-3)


def mean_over(ranks: int) -> Callable[[Tensor], Tensor]:
    """Average over threads that represent ranks."""
    brought: list[Tensor] = []
    gate = Barrier(ranks)

    def mean(x: Tensor) -> Tensor:
        brought.append(x)
        gate.wait()
        total = torch.stack(brought).mean(0)
        if gate.wait() == 0:
            brought.clear()
        gate.wait()
        return total

    return mean


def test_balancing_couples_the_samples() -> None:
    term = term_of(centering="sinkhorn")
    assert term(context(term), *observe(tokens(1), tokens(2))).ndim == 0
    assert term.params.couples_samples
    assert not params().couples_samples


def test_temperature_follows_its_schedule() -> None:
    """0.04 at the start, 0.07 from 30 of 480 epochs on: the loss is that of the constant temperature."""
    term = term_of(teacher_temp={"start": 0.04, "end": 0.07, "until": 50})
    for step, temperature in ((0, 0.04), (25, 0.055), (50, 0.07), (99, 0.07)):
        constant = term_of(teacher_temp=temperature)
        pair = observe(tokens(1), tokens(2))
        torch.testing.assert_close(term(context(term, step), *pair), constant(context(constant, step), *pair))
    assert params().teacher_temp.until * 480 == 30


def test_the_last_layer_is_frozen_at_first() -> None:
    term = term_of(freeze_last=10, shared_head=False)
    for step, learns in ((0, False), (9, False), (10, True)):
        term.zero_grad()
        term(context(term, step), *observe(tokens(1), tokens(2))).mean().backward()
        last = [p for name, p in term.named_parameters() if "last" in name]
        assert len(last) == 4
        assert all((p.grad is not None) == learns for p in last)
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in term.head.mlp.parameters())


def test_norm_last_layer_has_no_gain_and_separate_heads_differ() -> None:
    names = {name for name, _ in term_of(norm_last_layer=True).named_parameters()}
    assert "head.last.weight_v" in names and not any(name.endswith("weight_g") for name in names)
    separate = term_of(shared_head=False)
    x = tokens(1).patch
    assert not torch.equal(separate.head(x, "cls"), separate.head(x, "patch"))
    shared = term_of()
    assert torch.equal(shared.head(x, "cls"), shared.head(x, "patch"))


def test_the_mean_of_visible_tokens_can_replace_the_class_token() -> None:
    term = term_of(cls_source="mean", patch_weight=0.0)
    student, teacher = tokens(1, VISIBLE), tokens(2)
    value = term(context(term), *observe(Tokens(student.patch, VISIBLE), Tokens(teacher.patch), VISIBLE))
    explicit = term_of(patch_weight=0.0)
    means = (Tokens(t.patch, t.index, t.patch.mean(1)) for t in (student, teacher))
    assert torch.equal(value, explicit(context(explicit), *observe(*means, VISIBLE)))
    assert not params(cls_source="mean").needs().student.cls


def test_what_it_needs() -> None:
    needs = params(tap=0.3, teacher_tap="encoder").needs()
    assert needs.teacher is not None
    assert (needs.student.taps, needs.teacher.taps) == ((0.3,), ("encoder",))
    assert needs.student.cls and needs.teacher.cls and not needs.student.output
    assert not params(cls_weight=0.0).needs().student.cls
    assert params(tap=2).needs().teacher == params(tap=2).needs().student


def test_every_student_view_is_compared_with_every_teacher_view() -> None:
    term = term_of()
    seen = {"a": tokens(1), "b": tokens(2), "c": tokens(3), "d": tokens(4)}
    networks = {"a": "student", "b": "student", "c": "teacher", "d": "teacher"}
    views = {name: view(network) for name, network in networks.items()}
    outputs = {name: Outputs(taps={"encoder": t}) for name, t in seen.items()}
    together = term(context(term), views, outputs)
    term.discard()
    separate = [term(context(term), *observe(seen[s], seen[t])) for s in "ab" for t in "cd"]
    torch.testing.assert_close(together, torch.stack(separate).mean(0), rtol=1e-12, atol=0)


def test_bf16_tokens_under_autocast_stay_finite_at_8192_prototypes() -> None:
    """Logits of +-1 / tau: exp underflows, the loss must not. The head computes in float32."""
    logits = torch.ones(4, 8192, dtype=torch.bfloat16)
    logits[:, ::2] = -1
    with torch.autocast("cpu", dtype=torch.bfloat16):
        log_p = log_assignments(logits, 0.04)
    assert log_p.dtype == torch.float32 and log_p.isfinite().all()
    assert abs(float(log_p.exp().sum(-1).max()) - 1) < 1e-5

    term = Discrimination(params(prototypes=8192), widths={"encoder": D})
    exact = Discrimination(params(prototypes=8192), widths={"encoder": D}).double()
    exact.load_state_dict(term.state_dict())
    low = [Tokens(t.patch.bfloat16(), None, t.cls.bfloat16()) for t in (tokens(1), tokens(2))]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = term(context(term), *observe(*low))
    reference = exact(context(exact), *observe(*low))
    assert value.dtype == torch.float32 and value.isfinite().all()
    torch.testing.assert_close(value.double(), reference, rtol=1e-5, atol=0)


def test_initial_weights_follow_their_own_generator() -> None:
    term = term_of()
    one, two = torch.empty(2000, 50), torch.empty(2000, 50)
    term.init_parameter("head.mlp.0.weight", one, torch.Generator().manual_seed(1))
    term.init_parameter("head.mlp.0.weight", two, torch.Generator().manual_seed(1))
    assert torch.equal(one, two)
    assert abs(float(one.std()) - 0.02) < 2e-4
    for name, parameter in term.named_parameters():
        if name.endswith("bias"):
            assert torch.equal(parameter, torch.zeros_like(parameter))
        if name.endswith("weight_g"):
            assert torch.equal(parameter, torch.ones_like(parameter))


# Signs of collapse


@pytest.mark.parametrize("keys", [{}, {"cls_weight": 0.0}, {"centering": "none"}, {"centering": "sinkhorn"}])
def test_every_monitor_is_logged(keys: dict[str, object]) -> None:
    term = term_of(**keys)
    term(context(term), *observe(tokens(1), tokens(2)))
    read = term.diagnostics()
    assert {monitor.name for monitor in term.params.monitors()} == set(read)
    assert all(value.ndim == 0 and value.isfinite() for value in read.values())
    assert not term.diagnostics()


def test_collapse_to_one_prototype_and_to_uniform_raise_the_alarms() -> None:
    monitors = {monitor.name: monitor for monitor in params().monitors()}

    def alarms(teacher: Tensor) -> set[str]:
        term = term_of(centering="none")
        noise = torch.randn(B, N, K, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        term.cross_entropies(context(term), "patch", noise, teacher, torch.arange(B) % 3)
        read = {name: float(value) for name, value in term.diagnostics().items()}
        low = {name for name, value in read.items() if (bound := monitors[name].low) is not None and value < bound}
        return low | {
            name for name, value in read.items() if (bound := monitors[name].high) is not None and value > bound
        }

    healthy = 0.3 * torch.randn(B, N, K, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    one = torch.zeros(B, N, K, dtype=torch.float64)
    one[..., 3] = 5.0
    assert alarms(healthy) == set()
    assert alarms(one) == {"patch_kl_uniform", "patch_used_teacher"}
    assert {"patch_entropy", "patch_logit_std"} <= alarms(torch.zeros(B, N, K, dtype=torch.float64))


def single_rank(x: Tensor) -> Tensor:
    """Return x: the mean or gathered tensor of a single rank."""
    return x


def test_kl_to_uniform_and_fraction_used() -> None:
    one = torch.eye(K, dtype=torch.float64)[[3] * 5]
    assert abs(float(collapse.kl_to_uniform(one, single_rank)) - math.log(K)) < 1e-12
    all_alike = torch.eye(K, dtype=torch.float64)
    assert abs(float(collapse.kl_to_uniform(all_alike, single_rank))) < 1e-12
    assert float(collapse.fraction_used(one, single_rank)) == 1 / K
    assert float(collapse.fraction_used(all_alike, single_rank)) == 1.0


def test_effective_rank_counts_directions() -> None:
    generator = torch.Generator().manual_seed(0)
    three = (
        torch.randn(4000, 3, dtype=torch.float64, generator=generator)
        @ torch.linalg.qr(torch.randn(8, 3, dtype=torch.float64, generator=generator))[0].T
    )
    assert abs(float(token_spread.effective_rank(three, single_rank)) - 3) < 0.15
    one_direction = three[:, :1] * torch.ones(8, dtype=torch.float64)
    assert abs(float(token_spread.effective_rank(one_direction, single_rank)) - 1) < 1e-9


def test_a_label_shortcut_shows_as_no_divergence_within_a_class() -> None:
    labels = torch.tensor([0, 0, 1, 1, 9, 9])
    generator = torch.Generator().manual_seed(0)
    by_class = torch.randn(10, K, dtype=torch.float64, generator=generator)[labels]
    shortcut = collapse.label_divergence(torch.log_softmax(by_class, -1), labels, null=9)
    assert abs(float(shortcut[0])) < 1e-12 and float(shortcut[1]) > 0.1
    free = torch.randn(6, K, dtype=torch.float64, generator=generator)
    within, between = collapse.label_divergence(torch.log_softmax(free, -1), labels, null=9)
    assert float(within) > 0.1 and float(between) > 0.1
    p, q = torch.softmax(free, -1)[:2], torch.softmax(free, -1)[2:4]
    pairs = [(p[0], p[1]), (p[1], p[0]), (q[0], q[1]), (q[1], q[0])]
    explicit = torch.stack([(a * (a / b).log()).sum() for a, b in pairs]).mean()
    torch.testing.assert_close(within, explicit, rtol=1e-12, atol=0)
    single = collapse.label_divergence(torch.log_softmax(free[[0, 2]], -1), labels[[0, 2]], null=9)
    assert torch.equal(*single)


# Cost and settings


class Width(BackboneParams):
    def width(self, tap: object) -> int:
        return 96


@pytest.mark.parametrize(
    "keys",
    [{}, {"shared_head": False}, {"norm_last_layer": True}, {"layers": 2}, {"cls_weight": 0.0}, {"patch_weight": 0.0}],
)
def test_cost_equals_counted_flops(keys: dict[str, object]) -> None:
    given = params(prototypes=64, hidden=48, bottleneck=16, **keys)
    torch.manual_seed(0)
    term = Discrimination(given, widths={"encoder": 96})
    num_kept = VISIBLE.shape[1]
    wide = {
        "student": Tokens(torch.randn(B, num_kept, 96), VISIBLE, torch.randn(B, 96)),
        "teacher": Tokens(torch.randn(B, N, 96), None, torch.randn(B, 96)),
    }
    shapes = Shapes((1, 4, 4), 3)
    counted = {}
    for network, seen in wide.items():
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            term.logits(term.head, term.tokens(view(network, seen.index), seen))
        counted[network] = counter.get_total_flops() / B
    student = given.cost(Width(), shapes, ViewSpec("student"), num_kept)
    teacher = given.cost(Width(), shapes, ViewSpec("teacher", "teacher"), N)
    assert student.parameters == sum(p.numel() for p in term.parameters())
    assert teacher.parameters == student.parameters and teacher.activations == 0  # an average of the same head
    assert student.flops == pytest.approx(counted["student"], rel=0.01)
    assert teacher.flops == pytest.approx(counted["teacher"], rel=0.01)
    assert student.flops < teacher.flops or not given.patch_weight


def test_head_of_the_paper_has_the_size_of_the_table() -> None:
    """7.6M parameters on S/2."""

    class Small(BackboneParams):
        def width(self, tap: object) -> int:
            return 384

    cost = DiscriminationParams().cost(Small(), Shapes((4, 32, 32), 1000), ViewSpec("student"), 204)
    assert round(cost.parameters / 1e6, 1) == 7.6


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"cls_weight": 0.0, "patch_weight": 0.0}, "set weight = 0 instead"),
        ({"shared_head": False, "cls_weight": 0.0}, "has no effect"),
        ({"teacher_temp": 0.0}, "must be at least"),
        ({"prototype": 8}, "Extra inputs"),
    ],
)
def test_invalid_settings_are_rejected(keys: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        params(**keys)


def test_defaults_are_those_of_the_table() -> None:
    default = DiscriminationParams()
    assert (default.weight, default.prototypes, default.hidden, default.bottleneck) == (0.1, 8192, 2048, 256)
    assert (default.layers, default.student_temp, default.center_momentum) == (3, 0.1, 0.9)
    assert default.shared_head and default.centering == "mean" and not default.norm_last_layer
    assert DiscriminationParams.model_validate(default.model_dump(mode="json", by_alias=True)) == default
