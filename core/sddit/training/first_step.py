"""Check every loss on a few samples of the first batch, before the first step. The run does not change."""

from __future__ import annotations

import copy
import dataclasses
import math
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule

from sddit.errors import Problem, SdditError, describe_exception, raise_all, ran_out
from sddit.interfaces import Context, Cost, LossParams, Outputs, View, Want
from sddit.plugins.host import host
from sddit.plugins.mistakes import suggest_fix
from sddit.recipes.start_weights import named_weights
from sddit.training import loss_checks
from sddit.training.build import build_session
from sddit.training.findings import Findings, generator_states, restore_generators
from sddit.training.inputs import context_of, make_batch, micro_batches, step_samples
from sddit.training.loop import teacher_outputs, training_mode
from sddit.training.loss_checks import Scene
from sddit.training.session import Session
from sddit.training.simulated_ranks import check_ranks
from sddit.training.student import run_network

MAX_SAMPLES = 4
MAX_COUPLED = 64  # samples for a loss that compares them: it may need many, or compare only some pairs


def check_losses(session: Session) -> list[str]:
    """Check the losses that are active at any step, also where their weight is 0 at first. Returns notes for the user.

    Raises SdditError with everything in which they break their contract. Numbers that are non-finite in what a loss
    reads are not its fault; the step itself reports them.
    """
    if isinstance(session.root, FSDPModule):
        session = unsharded(session)
    notes: list[str] = []
    problems: list[Problem] = []
    with undisturbed(session), torch.compiler.set_stance("force_eager"):
        ctx, views, outputs = sample_outputs(session)
        for label, params in session.objective.params.items():
            term = session.student.terms[label]
            context = session.objective.contexts(ctx, [label], session.teacher)[label]
            try:
                term = copy.deepcopy(term)
                context = dataclasses.replace(context, ema_modules=copy.deepcopy(dict(context.ema_modules)))
            except Exception as failure:
                notes.append(
                    f"loss {label!r} is not checked before the first step, since it cannot be copied: {failure}"
                )
                continue
            scene = scene_of(session, label, context, views, outputs)
            if scene.is_finite():
                problems += examine(session, label, term, params, scene, notes)
    raise_all(problems)
    return notes


def unsharded(session: Session) -> Session:
    """Return a session with the same initial weights, all of them whole on this rank."""
    recipe = session.recipe
    whole = dataclasses.replace(recipe, train=recipe.train.model_copy(update={"distributed": "ddp"}))
    start = named_weights(recipe.start, "start") if recipe.start else None
    snapshot = named_weights(recipe.snapshot, "snapshot") if recipe.snapshot else None
    built = build_session(whole, session.device, start=start, snapshot=snapshot)
    return dataclasses.replace(built, world=session.world)


@contextmanager
def undisturbed(session: Session) -> Iterator[None]:
    """Run the student in training mode, and restore the global generators and the buffers of the network."""
    states = generator_states()
    buffers = {name: buffer.clone() for name, buffer in session.student.backbone.named_buffers()}
    try:
        with training_mode(session):
            yield
    finally:
        with torch.no_grad():
            for name, buffer in session.student.backbone.named_buffers():
                buffer.copy_(buffers[name])
        restore_generators(states)


def sample_outputs(session: Session) -> tuple[Context, Mapping[str, View], dict[str, Outputs]]:
    """Return views of a few samples of this rank's part of the batch, and the networks' outputs for all losses.

    A loss that compares samples may need many: the check takes those of the other ranks, too.
    """
    ids, epochs = step_samples(session)
    first = ids.index(next(micro_batches(session)).ids[0])
    coupled = any(params.couples_samples for params in session.objective.params.values())
    count = MAX_COUPLED if coupled else MAX_SAMPLES
    ids, epochs = ((part[first:] + part[:first])[:count] for part in (ids, epochs))
    ctx = context_of(session, ids, epochs)
    ctx = dataclasses.replace(ctx, gather=lambda x: x, mean=lambda x: x)  # every rank checks for itself
    batch = make_batch(session, ids, ctx.draws)
    views = session.pair_sampler(batch, ctx.draws, session.schedule, ctx)
    labels, student = list(session.objective.params), session.student
    with torch.no_grad():
        outputs = teacher_outputs(session, views, labels)
        for name, request in session.objective.requests(labels, "student", views).items():
            outputs[name] = run_network(student.backbone, session.schedule, request, student.precision)
    return ctx, views, outputs


def scene_of(
    session: Session, label: str, ctx: Context, views: Mapping[str, View], outputs: Mapping[str, Outputs]
) -> Scene:
    """Return what a loss reads: what it declared alone, though other losses may ask the networks for more."""
    objective = session.objective
    wants = {**objective.wants([label], "student"), **objective.wants([label], "teacher")}
    own = {name: views[name] for name in objective.read[label]}
    scene = Scene(ctx, own, {name: restricted(outputs[name], wants[name]) for name in own})
    if objective.params[label].couples_samples or scene.size <= MAX_SAMPLES:
        return scene
    return scene.select(torch.arange(MAX_SAMPLES, device=session.device))


def restricted(outputs: Outputs, want: Want) -> Outputs:
    """Return the part of the outputs that is wanted."""
    taps = {tap: outputs.taps[tap] for tap in want.taps}
    if not want.cls:
        taps = {tap: dataclasses.replace(tokens, cls=None) for tap, tokens in taps.items()}
    return dataclasses.replace(outputs, taps=taps) if want.output else Outputs(taps=taps)


def examine(
    session: Session, label: str, term: nn.Module, params: LossParams, scene: Scene, notes: list[str]
) -> list[Problem]:
    """Return what is wrong with one loss, and add to `notes` if it is not checked. `term` is a copy."""
    component = session.recipe.active_losses[label].component
    row = host().rows.get(component.origin)
    is_foreign = row is not None and not row.builtin
    raised = ("SD-P221", f"plugin {component.origin!r} raised an error")
    findings = Findings(f"loss.{label}", "losses", row.code if row and is_foreign else "", raised)
    doing = f"loss {label!r} saw {scene.shown}"
    with (
        findings.trying(doing, fix="correct the line above", masked=scene.masked),
        few_samples(params, scene, label, notes),
    ):
        if loss_checks.check_value(findings, copy.deepcopy(term), params, scene) and (
            loss_checks.check_gradient(findings, term, params, scene)
            and loss_checks.check_independence(findings, term, params, scene)
            and session.world.size > 1
        ):
            check_ranks(findings, term, params, scene)
    with findings.trying(f"loss {label!r} was asked what it costs"):
        loss_checks.check_parameters(findings, term, costs_of(session, params))
    return findings.problems


@contextmanager
def few_samples(params: LossParams, scene: Scene, label: str, notes: list[str]) -> Iterator[None]:
    """Turn an error that is not known as a mistake into a note, of a loss that compares samples: it may need more."""
    try:
        yield
    except Exception as failure:
        known = isinstance(failure, SdditError) or suggest_fix(failure, kind="losses", masked=scene.masked)
        if known or ran_out(failure) or not params.couples_samples:
            raise
        notes.append(
            f"loss {label!r} is not checked before the first step: with {scene.size} samples it raised "
            f"{describe_exception(failure)}"
        )


def costs_of(session: Session, params: LossParams) -> list[Cost | None]:
    """Return the stated cost of a loss for each of its views."""
    recipe = session.recipe
    backbone, shapes = recipe.backbone.params, recipe.shapes
    tokens = math.prod(backbone.grid(shapes))
    return [params.cost(backbone, shapes, view, tokens) for view in recipe.views_of(params)]


@contextmanager
def loss_errors(session: Session) -> Iterator[None]:
    """Replace an exception without a line of a plugin, such as one of a backward pass, by what is wrong with a loss at
    this step, if anything is.
    """
    try:
        yield
    except Exception as failure:
        frames = traceback.extract_tb(failure.__traceback__)
        named = isinstance(failure, SdditError) or any(host().owner_of(frame.filename) for frame in frames)
        examinable = not named and not ran_out(failure) and session.world.size == 1
        if examinable and (problems := problems_now(session)):
            raise SdditError(*problems) from failure
        raise


def problems_now(session: Session) -> tuple[Problem, ...]:
    """Return what `check_losses` finds, and nothing if it fails."""
    with suppress(Exception):
        try:
            check_losses(session)
        except SdditError as found:
            return found.problems
    return ()
