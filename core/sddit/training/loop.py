"""The training loop, read top to bottom: views, teacher, student, losses, backward, update, EMAs, log, save."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from sddit.data.order import batch_ids
from sddit.diffusion.draws import Draws
from sddit.distributed.parallel import full_tensor, gradient_accumulation, reach_all_parameters
from sddit.interfaces import Outputs, View
from sddit.training.inputs import context_of, make_batch
from sddit.training.nonfinite import discard_step, skip_step, synchronize_step_status
from sddit.training.optimization import (
    clip_gradients,
    complete_gradients,
    drop_unused_gradients,
    set_learning_rate,
)
from sddit.training.session import Session
from sddit.training.step_metrics import (
    Measured,
    StepResult,
    accumulate_metrics,
    add_to_sums,
    bin_losses,
    gradient_ratios,
    log_row,
    noise_edges,
    ratios_due,
    sum_measured,
    value_and_count,
)
from sddit.training.student import refuse_malformed, run_network
from sddit.value_schedules import value_at


class Observer(Protocol):
    """Callbacks invoked by the training loop: show, log, save, draw previews."""

    def logged(self, session: Session, row: Mapping[str, float]) -> None:
        """A line of metrics is due."""

    def stepped(self, session: Session) -> None:
        """A step is done: save, preview or stop here."""


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """The samples of one forward and backward pass on this rank."""

    ids: list[int]  # index of each image in its split
    epochs: list[int]  # epoch of each
    fraction: float  # of the batch, all ranks together
    measure_ratios: bool  # whether to compare the gradients of the losses


def train(session: Session, observer: Observer) -> None:
    """Take the remaining steps. The observer may raise to stop; the session is then between two steps."""
    edges = noise_edges(session)
    with training_mode(session):
        while session.step < session.total_steps:
            began = time.monotonic()
            result = take_step(session, edges)
            accumulate_metrics(session, result)
            took = time.monotonic() - began
            session.seconds += took
            add_to_sums(session.tally, "seconds_per_step", value_and_count(torch.tensor(took)))
            if session.step % session.recipe.train.log_every == 0 or session.step == session.total_steps:
                observer.logged(session, log_row(session))
            observer.stepped(session)


def take_step(session: Session, edges: Tensor) -> StepResult:
    """Take one optimizer step. Nothing lasting changes before all its numbers are known to be finite.

    If they are not, the step is skipped, or NonFinite is raised if the recipe allows no more skipped steps.
    """
    weights = session.objective.weights(session.step)
    measured, used = accumulate_gradients(session, weights, edges)
    parameters = [p for group in session.optimizer.param_groups for p in group["params"]]
    complete_gradients(session.optimizer, parameters)
    grad_norm = full_tensor(torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None]))
    non_finite, used = synchronize_step_status(session, measured, grad_norm, used)
    drop_unused_gradients(session.root, session.optimizer, used)
    if non_finite:
        discard_step(session)
        skip_step(session, non_finite)
        return StepResult(Measured({}, {}, {}), grad_norm, taken=False)
    clip_gradients(session.recipe.optimizer.params, parameters, grad_norm)
    set_learning_rate(session.optimizer, session.recipe.optimizer.params, session.step, session.total_steps)
    session.optimizer.step()
    session.optimizer.zero_grad(set_to_none=True)
    for ema in session.emas.values():
        ema.update(session.student.backbone, session.step)
    if session.teacher is not None:
        momentum = value_at(session.recipe.teacher.momentum, session.step, session.total_steps)
        session.teacher.update(session.student.backbone, session.student.terms, momentum)
    finish_losses(session, weights)
    session.step += 1
    return StepResult(measured, grad_norm, taken=True)


def accumulate_gradients(session: Session, weights: Mapping[str, float], edges: Tensor) -> tuple[Measured, list[bool]]:
    """Run forward and backward over the micro-batches of one batch; their gradients add up to those of the batch.

    Also returns, with DDP, whether this rank has a gradient for each parameter of the root.
    """
    settings = session.recipe.train
    micro = settings.micro_batch or settings.batch
    ids, epochs = batch_ids(session.recipe.seed, session.step, settings.batch, len(session.dataset))
    measured: list[Measured] = []
    used: list[bool] = []
    for begin in range(0, settings.batch, micro):
        rows = session.world.rows(begin, micro)
        measure_ratios = begin == 0 and len(weights) > 1 and ratios_due(session)
        part = MicroBatch(ids[rows], epochs[rows], micro / settings.batch, measure_ratios)
        last = begin + micro == settings.batch
        with gradient_accumulation(session.root, last=last):
            loss, own = forward(session, part, weights, edges)
            measured.append(own)
            if last:
                loss, used = reach_all_parameters(session.root, loss)
            if loss.requires_grad:
                torch.autograd.backward(loss)
    return sum_measured(measured), used


def forward(session: Session, part: MicroBatch, weights: Mapping[str, float], edges: Tensor) -> tuple[Tensor, Measured]:
    """Run views, teacher, student and losses on one micro-batch. Returns its part of the loss, and its measurements."""
    objective, labels = session.objective, list(weights)
    draws = Draws(
        session.recipe.seed,
        session.step,
        torch.as_tensor(part.ids, device=session.device),
        torch.as_tensor(part.epochs, device=session.device),
    )
    batch = make_batch(session, part.ids, draws)
    ctx = context_of(session, draws)
    views = session.pair_sampler(batch, draws, session.schedule, ctx)
    values: dict[str, Tensor] = session.root(
        objective.active_terms(labels, ctx, views, session.teacher),
        objective.requests(labels, "student", views),
        teacher_outputs(session, views, labels),
    )
    for label in labels:
        refuse_malformed(label, objective.params[label], values[label], len(part.ids))
    reduced = {
        label: objective.reduce(label, value, views[objective.student_view(label)], part.fraction)
        for label, value in values.items()
    }
    ratios = gradient_ratios(session, reduced, weights) if part.measure_ratios else {}
    zero = torch.zeros((), device=session.device)
    loss = sum((weights[label] * value for label, value in reduced.items()), start=zero)
    losses = {label: value.detach() for label, value in reduced.items()}
    return loss, Measured(losses, bin_losses(objective, values, views, edges), ratios)


def teacher_outputs(session: Session, views: Mapping[str, View], labels: list[str]) -> dict[str, Outputs]:
    """Return the teacher's outputs, without gradient, for the views that an active loss reads them from."""
    requests = session.objective.requests(labels, "teacher", views)
    if not requests:
        return {}
    assert session.teacher is not None, "a teacher is built whenever an active loss reads one"
    with torch.no_grad():
        return {
            name: run_network(
                session.teacher.backbone, session.schedule, request.view, request.want, session.student.precision
            )
            for name, request in requests.items()
        }


def finish_losses(session: Session, weights: Mapping[str, float]) -> None:
    """Let the active losses apply what they staged: buffers change here and nowhere else."""
    ids = torch.zeros(1, dtype=torch.int64, device=session.device)
    ctx = context_of(session, Draws(session.recipe.seed, session.step, ids))
    contexts = session.objective.contexts(ctx, list(weights), session.teacher)
    with torch.no_grad():
        for label, context in contexts.items():
            session.student.terms[label].after_step(context)


@contextmanager
def training_mode(session: Session) -> Iterator[None]:
    """Set the student to training mode; the teacher and the EMAs stay in evaluation mode."""
    session.student.train()
    try:
        yield
    finally:
        session.student.eval()
