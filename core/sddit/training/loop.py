"""Train: views, teacher, student, losses, backward, update, EMAs, log, save. Read it from top to bottom."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor

from sddit.distributed.parallel import gradient_accumulation, reach_all_parameters
from sddit.interfaces import Outputs, View
from sddit.plugins.leftovers import end_if_forked
from sddit.plugins.shared_state import SharedState
from sddit.training import step_metrics
from sddit.training.inputs import MicroBatch, context_of, make_batch, micro_batches
from sddit.training.nonfinite import NonFinite, discard_step, synchronize_step_status
from sddit.training.optimization import (
    clip_gradients,
    complete_gradients,
    drop_unused_gradients,
    gradient_norm,
    set_learning_rate,
)
from sddit.training.session import Session
from sddit.training.step_metrics import BatchMetrics, StepResult
from sddit.training.student import refuse_malformed, refuse_untrained, run_network
from sddit.value_schedules import value_at


class Callbacks(Protocol):
    """Callbacks invoked by the training loop: show, log, save, draw previews."""

    def logged(self, session: Session, row: Mapping[str, float]) -> None:
        """Handle a line of metrics."""

    def stepped(self, session: Session) -> None:
        """Save, preview or stop after a step. May raise to stop; the session is then between two steps."""


def train(session: Session, callbacks: Callbacks) -> None:
    """Take the remaining steps."""
    shared = SharedState()
    with training_mode(session):
        while session.step < session.total_steps:
            start = time.monotonic()
            end_if_forked(session.pid)
            step_metrics.accumulate_metrics(session, take_step(session))
            elapsed = time.monotonic() - start
            shared.refuse_changes()
            session.seconds += elapsed
            seconds = step_metrics.value_and_count(torch.tensor(elapsed))
            step_metrics.add_to_sums(session.sums, "seconds_per_step", seconds)
            if session.step % session.recipe.train.log_every == 0 or session.step == session.total_steps:
                callbacks.logged(session, step_metrics.log_row(session))
            callbacks.stepped(session)


def take_step(session: Session) -> StepResult:
    """Take one optimizer step. No lasting state changes before all of its numbers are known to be finite.

    A non-finite step is skipped. Raises NonFinite if the recipe allows no more skipped steps.
    """
    weights = session.objective.weights(session.step)
    metrics, used = accumulate_gradients(session, weights)
    refuse_untrained(session.student, session.trained)
    parameters = [p for group in session.optimizer.param_groups for p in group["params"]]
    complete_gradients(session.optimizer, parameters)
    grad_norm = gradient_norm(parameters)
    non_finite, used = synchronize_step_status(session, metrics, grad_norm, used)
    drop_unused_gradients(session.root, session.optimizer, used)
    if non_finite:
        discard_step(session)
        if len(session.skipped) == session.recipe.train.skip_non_finite:
            raise NonFinite(session, non_finite)
        session.skipped.append(session.step)
        session.step += 1
        return StepResult(BatchMetrics({}, {}, {}), grad_norm, taken=False)
    clip_gradients(session.recipe.optimizer.params, session.trained, grad_norm)
    set_learning_rate(session.optimizer, session.recipe.optimizer.params, session.step, session.total_steps)
    session.optimizer.step()
    session.optimizer.zero_grad(set_to_none=True)
    for ema in session.emas.values():
        ema.update(session.student.backbone, session.step, session.num_taken + 1)
    if session.teacher is not None:
        momentum = value_at(session.recipe.teacher.momentum, session.step, session.total_steps)
        session.teacher.update(session.student.backbone, session.student.terms, momentum)
    ctx = context_of(session, [0], [0])
    with torch.no_grad():  # the losses apply what they staged: their buffers change here and nowhere else
        for label, context in session.objective.contexts(ctx, list(weights), session.teacher).items():
            session.student.terms[label].after_step(context)
    session.step += 1
    return StepResult(metrics, grad_norm, taken=True)


def accumulate_gradients(session: Session, weights: Mapping[str, float]) -> tuple[BatchMetrics, list[bool]]:
    """Run forward and backward over the micro-batches of one batch; their gradients add up to those of the batch.

    Also returns, with DDP, whether this rank has a gradient for each parameter of the root.
    """
    measured: list[BatchMetrics] = []
    used: list[bool] = []
    for part in micro_batches(session):
        with gradient_accumulation(session.root, last=part.last):
            loss, metrics = forward(session, part, weights)
            measured.append(metrics)
            if part.last:
                loss, used = reach_all_parameters(session.root, loss)
            if loss.requires_grad:
                torch.autograd.backward(loss)
    return step_metrics.sum_metrics(measured), used


def forward(session: Session, part: MicroBatch, weights: Mapping[str, float]) -> tuple[Tensor, BatchMetrics]:
    """Run views, teacher, student and losses on one micro-batch. Returns its part of the loss, and its metrics."""
    objective, labels = session.objective, list(weights)
    ctx = context_of(session, part.ids, part.epochs)
    batch = make_batch(session, part.ids, ctx.draws)
    views = session.pair_sampler(batch, ctx.draws, session.schedule, ctx)
    values: dict[str, Tensor] = session.root(
        objective.active_terms(labels, ctx, views, session.teacher),
        objective.requests(labels, "student", views),
        teacher_outputs(session, views, labels),
    )
    end_if_forked(session.pid)
    reduced: dict[str, Tensor] = {}  # scalars that add up to the mean over the batch
    binned: dict[str, Tensor] = {}
    for label, value in values.items():
        refuse_malformed(label, objective.params[label], value, len(part.ids))
        t = objective.noise_level(label, views)
        value = objective.apply_window(label, value, t)
        if value.dim():
            binned[label] = step_metrics.bin_by_noise(value, t, session.noise_edges)
            value = value.mean()
        reduced[label] = value * part.fraction
    ratios = step_metrics.gradient_ratios(session, reduced, weights) if part.first else {}
    zero = torch.zeros((), device=session.device)
    loss = sum((weights[label] * value for label, value in reduced.items()), start=zero)
    losses = {label: value.detach() for label, value in reduced.items()}
    return loss, BatchMetrics(losses, binned, ratios)


def teacher_outputs(session: Session, views: Mapping[str, View], labels: list[str]) -> dict[str, Outputs]:
    """Return the teacher's outputs, without gradient, for the views that an active loss reads them from."""
    requests = session.objective.requests(labels, "teacher", views)
    if not requests:
        return {}
    assert session.teacher is not None, "a teacher is built whenever an active loss reads one"
    with torch.no_grad():
        return {
            name: run_network(session.teacher.backbone, session.schedule, request, session.student.precision)
            for name, request in requests.items()
        }


@contextmanager
def training_mode(session: Session) -> Iterator[None]:
    """Set the student to training mode; the teacher and the EMAs stay in evaluation mode."""
    session.student.train()
    try:
        yield
    finally:
        session.student.eval()
