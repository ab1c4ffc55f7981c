"""Define the discrimination loss of SD-DiT, in the form of DINO and iBOT."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sddit.evaluation.token_spread import token_spread
from sddit.interfaces import Context, Outputs, Tap, Tokens, View
from sddit.losses import LossTerm
from sddit.value_schedules import step_of, value_at
from sddit_discrimination import collapse, head
from sddit_discrimination.head import Head, Kind
from sddit_discrimination.params import DiscriminationParams


def log_assignments(logits: Tensor, temperature: float, center: Tensor | None = None) -> Tensor:
    """Return log softmax((l - c) / tau) over prototypes, [..., K], in float32 or wider."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if center is not None:
        logits = logits - center
    return torch.log_softmax(logits / temperature, dim=-1)


def log_balanced(logits: Tensor, temperature: float, iterations: int, mean: Callable[[Tensor], Tensor]) -> Tensor:
    """Map logits [..., K] to log assignments in which all prototypes have equal weight over the rows of all ranks.

    Sinkhorn iterations on exp(l / tau): scale columns to equal sums, then rows to 1 (arXiv:2006.09882, section 3.1),
    computed with logarithms in float64, so that no temperature overflows. `mean` averages over the ranks.
    """
    log_p = (logits.double() / temperature).flatten(0, -2)  # [R, K]
    for _ in range(iterations):
        columns = log_p.logsumexp(dim=0)  # [K]
        offset = mean(columns)  # equal on all ranks and close to each, so that exp does not overflow
        log_p = (log_p - offset - mean((columns - offset).exp()).log()).log_softmax(dim=-1)
    return log_p.view(logits.shape).to(torch.promote_types(logits.dtype, torch.float32))


def cross_entropy(p: Tensor, log_q: Tensor) -> Tensor:
    """Return -sum_k p_k log q_k of the teacher's p and the student's q, [..., K] -> [...]."""
    return -(p * log_q).sum(dim=-1)


class Discrimination(LossTerm):
    """L_D = w_cls CE(class tokens) + w_patch mean over the student's visible tokens CE(patch tokens), per sample [B].

    p = softmax((P_t(g) - C) / tau_t) assigns the teacher's token g to K prototypes, q = softmax(P_s(h) / tau_s) the
    student's token h (arXiv:2104.14294, eq. 1 and section 3.1; arXiv:2111.07832, eq. 2 and 3). Unlike in iBOT, the
    patch part averages over visible tokens: the student's encoder has no others. Each student view is compared with
    each teacher view.

    The centers C are moving averages of the teacher's logits over all its tokens, and over the batch of all processes.
    They are updated after the step, from sums staged here. `DiscriminationParams.monitors` explains the diagnostics.
    With centering "sinkhorn" the samples of a batch depend on each other, so the loss is a scalar.
    """

    ema_modules = ("head",)

    def __init__(self, params: DiscriminationParams, *, widths: Mapping[Tap, int], **_: Any) -> None:
        super().__init__()
        self.params = params
        weights: dict[Kind, float] = {"cls": params.cls_weight, "patch": params.patch_weight}
        self.weights = {kind: weight for kind, weight in weights.items() if weight > 0}
        self.head = Head(params, widths[params.tap])
        if params.centering == "mean":
            for kind in self.weights:
                self.register_buffer(f"center_{kind}", torch.zeros(params.prototypes))
        self._staged: dict[Kind, tuple[Tensor, int]] = {}  # sum over samples [K], number of samples
        for name, parameter in self.named_parameters():
            self.init_parameter(name, parameter)

    def init_parameter(self, name: str, parameter: Tensor, generator: torch.Generator | None = None) -> None:
        """Initialize one parameter."""
        head.init_parameter(name, parameter, generator)

    def forward(self, ctx: Context, views: Mapping[str, View], outputs: Mapping[str, Outputs]) -> Tensor:
        students = {name: view for name, view in views.items() if view.network == "student"}
        teachers = {name: view for name, view in views.items() if view.network == "teacher"}
        student_tap, teacher_tap = self.params.taps
        frozen = ctx.step < step_of(self.params.freeze_last, ctx.total_steps)
        logits: dict[str, dict[Kind, Tensor]] = {}
        with torch.autocast(next(iter(views.values())).x.device.type, enabled=False):
            for name, view in teachers.items():
                with torch.no_grad():
                    tokens = self.tokens(view, outputs[name].taps[teacher_tap])
                    logits[name] = self.logits(ctx.ema_modules["head"], tokens)
                    self.stage(logits[name])
            for name, view in students.items():
                tokens = self.tokens(view, outputs[name].taps[student_tap])
                logits[name] = self.logits(self.head, tokens, frozen=frozen)
                self.log_features(ctx, tokens)
            pairs = [
                self.compare(ctx, views[s], logits[s], views[t], logits[t]) for s in students for t in teachers
            ]  # of [B]
        per_sample = torch.stack(pairs).mean(dim=0)
        return per_sample.mean() if self.params.couples_samples else per_sample

    def tokens(self, view: View, tokens: Tokens) -> dict[Kind, Tensor]:
        """Return the visible tokens of a network in the dtype of the head: cls [B, 1, D] and patch [B, n, D]."""
        dtype = self.head.last.weight_v.dtype
        patch = tokens.at(view.visible).to(dtype)
        if "cls" not in self.weights:
            return {"patch": patch}
        if self.params.cls_source == "mean":
            return {"cls": patch.mean(dim=1, keepdim=True), "patch": patch}
        assert tokens.cls is not None, "needs() asks for the class token"
        return {"cls": tokens.cls[:, None].to(dtype), "patch": patch}

    def logits(self, head: nn.Module, tokens: Mapping[Kind, Tensor], *, frozen: bool = False) -> dict[Kind, Tensor]:
        """Apply a head to the tokens of each kind with a weight, [B, n, K]."""
        return {kind: head(tokens[kind], kind, frozen=frozen) for kind in self.weights}

    def compare(
        self,
        ctx: Context,
        view: View,
        student: Mapping[Kind, Tensor],
        teacher_view: View,
        teacher: Mapping[Kind, Tensor],
    ) -> Tensor:
        """Compare the logits of one student view with those of one teacher view, [B]."""
        parts = []
        for kind, weight in self.weights.items():
            targets = teacher[kind]
            if kind == "patch":
                targets = Tokens(targets, teacher_view.visible).at(view.visible)
            parts.append(weight * self.cross_entropies(ctx, kind, student[kind], targets, view.labels).mean(dim=1))
        return torch.stack(parts).sum(dim=0)

    def cross_entropies(self, ctx: Context, kind: Kind, student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
        """Return the cross-entropies [B, n] of logits [B, n, K], and log the signs of collapse."""
        with torch.no_grad():
            log_p = self.targets(ctx, kind, teacher)
            p = log_p.exp()
        entropies = cross_entropy(p, log_assignments(student, self.params.student_temp))
        with torch.no_grad():
            self.log(f"{kind}_loss", entropies)
            self.log(f"{kind}_entropy", cross_entropy(p, log_p))
            self.log(f"{kind}_kl_uniform", collapse.kl_to_uniform(p, ctx.mean))
            self.log(f"{kind}_used_teacher", collapse.fraction_used(p, ctx.mean))
            self.log(f"{kind}_used_student", collapse.fraction_used(student, ctx.mean))
            self.log(f"{kind}_logit_std", teacher.std(dim=-1))
            if self.params.centering == "mean":
                self.log(f"{kind}_center_norm", self.get_buffer(f"center_{kind}").norm())
            if kind == "cls" and ctx.num_classes > 1:
                within, between = collapse.label_divergence(
                    ctx.gather(log_p[:, 0]), ctx.gather(labels), ctx.num_classes
                )
                self.log("kl_within", within)
                self.log("kl_between", between)
        return entropies

    def targets(self, ctx: Context, kind: Kind, teacher: Tensor) -> Tensor:
        """Return the teacher's log assignments of its logits [B, n, K]."""
        temperature = value_at(self.params.teacher_temp, ctx.step, ctx.total_steps)
        if self.params.centering == "sinkhorn":
            return log_balanced(teacher, temperature, self.params.sinkhorn_iterations, ctx.mean)
        center = self.get_buffer(f"center_{kind}") if self.params.centering == "mean" else None
        return log_assignments(teacher, temperature, center)

    @torch.no_grad()
    def log_features(self, ctx: Context, tokens: Mapping[Kind, Tensor]) -> None:
        """Log how much the student's patch tokens differ from each other."""
        for name, value in token_spread(tokens["patch"], mean=ctx.mean, gather=ctx.gather).items():
            self.log(name, value)

    def stage(self, teacher: Mapping[Kind, Tensor]) -> None:
        """Add the teacher's logits to the sums that update the centers: mean over tokens, sum over samples."""
        if self.params.centering != "mean":
            return
        for kind, logits in teacher.items():
            total, count = self._staged.get(kind, (torch.zeros_like(logits[0, 0]), 0))
            self._staged[kind] = (total + logits.mean(dim=1).sum(dim=0), count + len(logits))

    @torch.no_grad()
    def after_step(self, ctx: Context) -> None:
        """C <- m C + (1 - m) mean of the logits, over all ranks (arXiv:2104.14294, eq. 4)."""
        for kind, (total, count) in self._staged.items():
            center = self.get_buffer(f"center_{kind}")
            mean = ctx.mean(total) / ctx.mean(total.new_full((), count))
            center.lerp_(mean.to(center), 1 - self.params.center_momentum)
        self.discard()

    def staged(self) -> list[Tensor]:
        return [total for total, _ in self._staged.values()]

    def discard(self) -> None:
        self._staged.clear()
