"""The training loop, read top to bottom: pairs, teacher, student, terms, backward, update, averages, log, save."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor

from sddit.data.order import batch_ids
from sddit.diffusion.draws import Draws
from sddit.distributed.parallel import full_tensor, gradient_accumulation, reach_all_parameters
from sddit.interfaces import Outputs
from sddit.training.inputs import context_of, make_batch
from sddit.training.nonfinite import forget_step, not_finite, skip_step
from sddit.training.optimization import clip_gradients, complete_gradients, set_learning_rate
from sddit.training.session import Session
from sddit.training.step_metrics import (
    StepResult,
    add,
    bin_by_noise,
    gradient_ratios,
    log_row,
    noise_edges,
    pair,
    ratios_due,
    tally,
)
from sddit.training.student import inside, observe, refuse_malformed
from sddit.value_schedules import value_at


class Observer(Protocol):
    """What the world around the loop does: show, log, save, draw previews."""

    def logged(self, session: Session, row: Mapping[str, float]) -> None:
        """A line of metrics is due."""

    def stepped(self, session: Session) -> None:
        """A step was taken: save, preview or stop here."""


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
    result.grad_norm = full_tensor(torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None]))
    if bad := not_finite(session, result):
        forget_step(session)
        skip_step(session, bad)
        return StepResult({}, {}, result.grad_norm, {}, [], taken=False)
    clip_gradients(session.recipe.optimizer.params, parameters, result.grad_norm)
    set_learning_rate(session.optimizer, session.recipe.optimizer.params, session.step, session.total_steps)
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
        with gradient_accumulation(session.root, last=last):
            loss = forward(session, ids[rows], epochs[rows], weights, share, edges, total, measure_ratio)
            if last:
                loss, total.touched = reach_all_parameters(session.root, loss)
            if loss.requires_grad:
                torch.autograd.backward(loss)
    return total


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


def finish_terms(session: Session, weights: Mapping[str, float]) -> None:
    """Terms apply what they staged: buffers change here and nowhere else."""
    ids = torch.zeros(1, dtype=torch.int64, device=session.device)
    ctx = context_of(session, Draws(session.recipe.seed, session.step, ids))
    contexts = session.objective.contexts(ctx, list(weights), session.teacher)
    with torch.no_grad():
        for label, context in contexts.items():
            session.student.terms[label].after_step(context)  # type: ignore[operator]


@contextmanager
def training_mode(session: Session) -> Iterator[None]:
    """Student in training mode, the teacher and the averages as they are, in evaluation mode."""
    session.student.train()
    try:
        yield
    finally:
        session.student.eval()
