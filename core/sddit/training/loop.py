"""The training loop, read top to bottom: pairs, teacher, student, terms, backward, update, averages, log, save."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule

from sddit.data.loader import batch_ids
from sddit.draws import Draws
from sddit.errors import Problem, SdditError
from sddit.interfaces import Batch, Context, DrawnDataset, OptimizerParams, Outputs
from sddit.training.distribution import accumulating, reaching_all, whole
from sddit.training.objective import inside, observe, refuse_malformed
from sddit.training.session import Session
from sddit.values import step_of, value_at

NOISE_BINS = 4  # each term is also logged by quarter of the training noise density
GRADIENT_RATIO_EVERY = 100  # steps between measurements of each term's share of the backbone's gradient


class Observer(Protocol):
    """What the world around the loop does: show, log, save, draw previews."""

    def logged(self, session: Session, row: Mapping[str, float]) -> None:
        """A line of metrics is due."""

    def stepped(self, session: Session) -> None:
        """A step was taken: save, preview or stop here."""


@dataclass(slots=True)
class StepResult:
    """What one step measured, still on the device."""

    terms: dict[str, Tensor]  # unweighted mean of each active term
    binned: dict[str, Tensor]  # its sums by noise quarter, then counts, [2, NOISE_BINS]
    grad_norm: Tensor
    ratios: dict[str, float]  # norm of each weighted term's gradient on the backbone, over the first term's
    touched: list[bool]  # of several processes: whether this one had a gradient for each parameter of the root
    taken: bool = True  # else the step was skipped, and measured nothing


def train(session: Session, observer: Observer) -> None:
    """Take the remaining steps. The observer may raise to stop; the session is then between two steps."""
    edges = noise_edges(session)
    with training_mode(session):
        while session.step < session.total_steps:
            began = time.monotonic()
            result = take_step(session, edges)
            tally(session, result)
            took = time.monotonic() - began
            session.seconds += took
            add(session.tally, "seconds_per_step", pair(torch.tensor(took)))
            if session.step % session.recipe.train.log_every == 0 or session.step == session.total_steps:
                observer.logged(session, log_row(session))
            observer.stepped(session)


def take_step(session: Session, edges: Tensor) -> StepResult:
    """One optimizer step. Nothing that lasts changes before all its numbers are known to be finite.

    Where they are not, the step is skipped, or NonFinite raised if the recipe allows no more of that.
    """
    weights = session.objective.weights(session.step)
    result = accumulate(session, weights, edges)
    parameters = [p for group in session.optimizer.param_groups for p in group["params"]]
    complete_gradients(session.optimizer, parameters)
    result.grad_norm = whole(torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None]))
    if bad := not_finite(session, result):
        forget_step(session)
        skip_step(session, bad)
        return StepResult({}, {}, result.grad_norm, {}, [], taken=False)
    clip_gradients(session.recipe.optimizer.params, parameters, result.grad_norm)
    set_learning_rate(session)
    session.optimizer.step()
    session.optimizer.zero_grad(set_to_none=True)
    for average in session.averages.values():
        average.update(session.student.backbone, session.step)
    if session.teacher is not None:
        momentum = value_at(session.recipe.teacher.momentum, session.step, session.total_steps)
        session.teacher.update(session.student.backbone, dict(session.student.terms.items()), momentum)
    finish_terms(session, weights)
    session.step += 1
    return result


def accumulate(session: Session, weights: Mapping[str, float], edges: Tensor) -> StepResult:
    """Forward and backward over the micro-batches of one batch; gradients add up to those of the whole."""
    train_settings = session.recipe.train
    micro = train_settings.micro_batch or train_settings.batch
    ids, epochs = batch_ids(session.recipe.seed, session.step, train_settings.batch, len(session.dataset))
    total = StepResult({}, {}, torch.zeros(()), {}, [])
    for begin in range(0, train_settings.batch, micro):
        rows = session.world.rows(begin, micro)
        share = micro / train_settings.batch
        measure_ratio = begin == 0 and len(weights) > 1 and ratios_due(session)
        last = begin + micro == train_settings.batch
        with accumulating(session.root, last=last):
            loss = forward(session, ids[rows], epochs[rows], weights, share, edges, total, measure_ratio)
            if last:
                loss, total.touched = reaching_all(session.root, loss)
            if loss.requires_grad:
                torch.autograd.backward(loss)
    return total


def ratios_due(session: Session) -> bool:
    """Whether to measure who leads the network. Not with fsdp: its weights are in the graph only while they are gathered."""
    return session.step % GRADIENT_RATIO_EVERY == 0 and not isinstance(session.root, FSDPModule)


def forward(
    session: Session,
    ids: Any,
    epochs: Any,
    weights: Mapping[str, float],
    share: float,
    edges: Tensor,
    total: StepResult,
    measure_ratio: bool,
) -> Tensor:
    """One micro-batch: views, teacher, student, terms. Adds what it measured to `total`; returns its part of the loss."""
    objective, labels = session.objective, list(weights)
    draws = Draws(
        session.recipe.seed,
        session.step,
        torch.as_tensor(ids, device=session.device),
        torch.as_tensor(epochs, device=session.device),
    )
    batch = make_batch(session, ids, draws)
    ctx = context_of(session, draws)
    views = session.pair_sampler(batch, draws, session.schedule, ctx)
    seen = teach(session, views, labels)
    values: dict[str, Tensor] = session.root(
        objective.contexts(ctx, labels, session.teacher),
        views,
        objective.wants(labels, "student"),
        seen,
        {label: objective.read[label] for label in labels},
    )
    for label in labels:
        refuse_malformed(label, objective.params[label], values[label], len(ids))
    reduced = {
        label: objective.reduce(label, value, views[objective.student_view(label)], share)
        for label, value in values.items()
    }
    if measure_ratio:
        total.ratios = gradient_ratios(session, reduced, weights)
    loss = sum(
        (weights[label] * value for label, value in reduced.items()), start=torch.zeros((), device=session.device)
    )
    for label, value in values.items():
        total.terms[label] = total.terms.get(label, 0) + reduced[label].detach()
        if value.dim():
            params, t = objective.params[label], views[objective.student_view(label)].t
            total.binned[label] = total.binned.get(label, 0) + bin_by_noise(
                inside(params.window, t, value).detach(), t, edges
            )
    return loss


def context_of(session: Session, draws: Draws) -> Context:
    """What pair samplers and terms may know at this step."""
    return Context(
        step=session.step,
        total_steps=session.total_steps,
        schedule=session.schedule,
        draws=draws,
        num_classes=session.recipe.shapes.num_classes,
        gather=session.world.gather,
        mean=session.world.mean,
    )


def make_batch(session: Session, ids: Any, draws: Draws) -> Batch:
    """Fetch images, draw those that are distributions, mirror some, drop some labels."""
    settings, dataset = session.recipe.dataset.params, session.dataset
    x0, true_labels = dataset.fetch(ids)
    dtype = next(session.student.parameters()).dtype
    x0, true_labels = x0.to(session.device, dtype, non_blocking=True), true_labels.to(session.device, non_blocking=True)
    if isinstance(dataset, DrawnDataset):
        spread = dataset.spread(ids).to(session.device, dtype, non_blocking=True)
        x0 = x0 + spread * draws.normal("posterior", x0.shape[1:]).to(dtype)
    flipped = torch.zeros(len(ids), dtype=torch.bool, device=session.device)
    if settings.flip:
        flipped = draws.uniform("flip") < 0.5
        x0 = torch.where(flipped[:, None, None, None], x0.flip(-1), x0)
    null = torch.full_like(true_labels, session.recipe.shapes.num_classes)
    labels = torch.where(draws.uniform("label") < settings.label_drop, null, true_labels)
    return Batch(
        x0=x0, labels=labels, true_labels=true_labels, ids=torch.as_tensor(ids, device=session.device), flipped=flipped
    )


def teach(session: Session, views: Mapping[str, Any], labels: list[str]) -> dict[str, Outputs]:
    """The teacher's outputs, without gradient, for the views that some active term wants them of."""
    wants = session.objective.wants(labels, "teacher")
    if not wants:
        return {}
    assert session.teacher is not None, "a teacher is built whenever a term that counts wants one"
    with torch.no_grad():
        return {
            name: observe(session.teacher.backbone, session.schedule, views[name], want, session.student.precision)
            for name, want in wants.items()
        }


def complete_gradients(optimizer: torch.optim.Optimizer, parameters: list[Tensor]) -> None:
    """A parameter that learned before and that this step left without a gradient gets zeros, so that its moments go on.

    One that never had a gradient is left alone: its moments begin when it begins to learn, as for frozen prototypes.
    """
    for parameter in parameters:
        if parameter.grad is None and parameter in optimizer.state:
            parameter.grad = torch.zeros_like(parameter)


def forget_untouched(session: Session, touched: list[bool]) -> None:
    """DDP gave zeros to what no rank had a gradient for; one process has none, so that its moments do not begin."""
    trained = [parameter for parameter in session.root.parameters() if parameter.requires_grad] if touched else []
    for parameter, was in zip(trained, touched, strict=True):
        if not was and parameter not in session.optimizer.state:
            parameter.grad = None


def clip_gradients(settings: OptimizerParams, parameters: list[Tensor], norm: Tensor) -> None:
    """Shorten gradients that are longer than the recipe allows: the whole, whose norm is given, or each by itself."""
    if settings.clip is None:
        return
    if settings.clip_scope == "all":
        torch.nn.utils.clip_grads_with_norm_(parameters, settings.clip, norm)
        return
    for parameter in parameters:
        if parameter.grad is not None:
            torch.nn.utils.clip_grad_norm_(parameter, settings.clip)


def gradient_ratios(session: Session, reduced: Mapping[str, Tensor], weights: Mapping[str, float]) -> dict[str, float]:
    """Norm of each weighted term's gradient on the backbone over that of the first term: who leads the network."""
    parameters = list(session.student.backbone.parameters())
    norms: dict[str, float] = {}
    for label, value in reduced.items():
        gradients = torch.autograd.grad(weights[label] * value, parameters, retain_graph=True, allow_unused=True)
        means = [session.world.mean(gradient) for gradient in gradients if gradient is not None]
        norms[label] = float(torch.nn.utils.get_total_norm(means))
    first, *others = norms
    return {label: norms[label] / norms[first] for label in others if norms[first] > 0}


def not_finite(session: Session, result: StepResult) -> list[str]:
    """What of a step holds a NaN or an infinity: losses, the gradient, what terms staged, on any rank.

    The one read of the device in a step, and the one message by which ranks agree on what to do with it.
    """
    values = {f"loss.{label}": [value] for label, value in result.terms.items()}
    values["the gradient"] = [result.grad_norm]
    values |= {f"what loss.{label} staged": list(term.staged()) for label, term in session.student.terms.items()}  # type: ignore[operator]
    names = [name for name, tensors in values.items() for _ in tensors]
    here = ~torch.stack([torch.isfinite(tensor).all() for tensors in values.values() for tensor in tensors])
    bad, touched = session.world.any(here, result.touched)
    forget_untouched(session, touched)
    if not bool(bad.any()):
        return []
    return list(dict.fromkeys(name for name, flag in zip(names, bad.tolist(), strict=True) if flag))


def forget_step(session: Session) -> None:
    """Drop what a step left behind that is not taken: gradients, what terms staged and measured."""
    session.optimizer.zero_grad(set_to_none=True)
    for term in session.student.terms.values():
        term.discard()  # type: ignore[operator]
        term.diagnostics()  # type: ignore[operator]


def skip_step(session: Session, bad: list[str]) -> None:
    """Go on to the next step with nothing changed. Raises NonFinite once the recipe allows no more of this."""
    allowed = session.recipe.train.skip_non_finite
    if len(session.skipped) == allowed:
        raise NonFinite(session, bad)
    session.skipped.append(session.step)
    session.step += 1


class NonFinite(SdditError):
    """A step whose numbers were not finite, and that the recipe does not let be skipped. Nothing was changed by it."""

    def __init__(self, session: Session, bad: list[str]) -> None:
        ids, _ = batch_ids(session.recipe.seed, session.step, session.recipe.train.batch, len(session.dataset))
        before = f", after {len(session.skipped)} skipped steps" if session.skipped else ""
        self.bad = bad
        super().__init__(
            Problem(
                "SD-N501",
                f"a non-finite value at step {session.step}{before}; nothing was changed by it",
                where=f"samples {', '.join(map(str, ids[:8]))}, ...",
                got=f"{', '.join(bad)}: not finite",
                expect="finite losses and gradients",
                fix="lower optimizer.lr, set optimizer.clip, or train.precision=fp32; look at these samples",
            )
        )


def set_learning_rate(session: Session) -> None:
    """lr(step) with its linear warm-up, times each group's factor."""
    params, step, total = session.recipe.optimizer.params, session.step, session.total_steps
    warmup = step_of(params.warmup, total)
    rate = value_at(params.lr, step, total) * min(1.0, (step + 1) / warmup if warmup > 0 else 1.0)
    for group in session.optimizer.param_groups:
        group["lr"] = rate * group["lr_scale"]


def finish_terms(session: Session, weights: Mapping[str, float]) -> None:
    """Terms apply what they staged: buffers change here and nowhere else."""
    ids = torch.zeros(1, dtype=torch.int64, device=session.device)
    ctx = context_of(session, Draws(session.recipe.seed, session.step, ids))
    contexts = session.objective.contexts(ctx, list(weights), session.teacher)
    with torch.no_grad():
        for label, context in contexts.items():
            session.student.terms[label].after_step(context)  # type: ignore[operator]


def noise_edges(session: Session) -> Tensor:
    """The t that split the training noise density into equal parts, [NOISE_BINS - 1]."""
    u = torch.arange(1, NOISE_BINS, dtype=torch.float64, device=session.device) / NOISE_BINS
    return session.schedule.t_from_uniform(u)


def bin_by_noise(value: Tensor, t: Tensor, edges: Tensor) -> Tensor:
    """Sums and counts of `value` [B] by noise quarter, [2, NOISE_BINS]."""
    index = torch.bucketize(t.to(edges.dtype), edges)
    sums = torch.zeros(2, NOISE_BINS, dtype=torch.float64, device=value.device)
    sums[0].index_add_(0, index, value.to(torch.float64))
    sums[1].index_add_(0, index, torch.ones_like(value, dtype=torch.float64))
    return sums


def tally(session: Session, result: StepResult) -> None:
    """Add a step to the sums of the current log interval, on the device: nothing is read back before the log is due."""
    if not result.taken:
        return
    seen = {"grad_norm": pair(result.grad_norm)}
    for label, value in result.terms.items():
        seen[f"loss/{label}"] = pair(value)
        for name, diagnostic in session.student.terms[label].diagnostics().items():  # type: ignore[operator]
            seen[f"{label}/{name}"] = pair(diagnostic)
    for label, sums in result.binned.items():
        for quarter, (total, count) in enumerate((sums * session.world.size).T):  # so that the mean is a sum over ranks
            seen[f"loss/{label}@{quarter + 1}"] = pair(total, count)
    for label, ratio in result.ratios.items():
        seen[f"grad_ratio/{label}"] = pair(torch.tensor(ratio))
    for name, mean in session.world.means(seen).items():
        add(session.tally, name, mean)


def pair(value: Tensor, count: Tensor | None = None) -> Tensor:
    """A value, and how often it was seen: [2] float64."""
    value = value.detach().to(torch.float64)
    return torch.stack([value, torch.ones_like(value) if count is None else count.to(value)])


def add(sums: dict[str, Tensor], name: str, more: Tensor) -> None:
    """Add to the sums under `name`."""
    sums[name] = sums[name] + more if name in sums else more


def log_row(session: Session) -> dict[str, float]:
    """The means of the interval that ends here, which then begins anew. One read of the device."""
    names = list(session.tally)
    sums = torch.stack([session.tally[name].to(session.device) for name in names]).cpu()
    means = {name: total / count for name, (total, count) in zip(names, sums.tolist(), strict=True) if count > 0}
    session.tally = {}
    took = means.pop("seconds_per_step")
    weights = session.objective.weights(session.step - 1)
    row = {
        "step": float(session.step),
        "images": float(session.step * session.recipe.train.batch),
        "seconds": session.seconds,
        "images_per_second": session.recipe.train.batch / max(took, 1e-9),
        "lr": session.optimizer.param_groups[0]["lr"] / session.optimizer.param_groups[0]["lr_scale"],
    }
    if "grad_norm" in means:  # else every step of the interval was skipped
        row["loss"] = sum(weight * means.get(f"loss/{label}", 0.0) for label, weight in weights.items())
    if session.recipe.train.skip_non_finite:
        row["skipped"] = float(len(session.skipped))
    return row | {f"weight/{label}": weight for label, weight in weights.items()} | means


@contextmanager
def training_mode(session: Session) -> Iterator[None]:
    """Student in training mode, the teacher and the averages as they are, in evaluation mode."""
    session.student.train()
    try:
        yield
    finally:
        session.student.eval()
