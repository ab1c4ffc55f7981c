"""Prepare the inputs of a step: micro-batches, random draws, images and context."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from sddit.data.order import balanced_batch_ids, batch_ids
from sddit.diffusion.draws import KeyedDraws
from sddit.interfaces import Batch, Context, DrawnDataset, Draws, TargetDataset
from sddit.training.session import Session


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """Samples of one forward and backward pass on this rank."""

    ids: list[int]  # index of each image in its split
    epochs: list[int]  # epoch of each
    fraction: float  # of the batch, all ranks together
    first: bool
    last: bool


def micro_batches(session: Session) -> Iterator[MicroBatch]:
    """Yield this rank's part of each micro-batch of the current step."""
    settings = session.recipe.train
    size = settings.micro_batch or settings.batch
    ids, epochs = step_samples(session)
    for start in range(0, settings.batch, size):
        rows = session.world.rows(start, size)
        last = start + size == settings.batch
        yield MicroBatch(ids[rows], epochs[rows], size / settings.batch, first=start == 0, last=last)


def step_samples(session: Session) -> tuple[list[int], list[int]]:
    """Return the ids and epochs of all samples of the current step, over all ranks."""
    seed, step, batch = session.recipe.seed, session.step, session.recipe.train.batch
    if session.members:
        return balanced_batch_ids(seed, step, batch, session.members)
    return batch_ids(seed, step, batch, len(session.dataset))


def context_of(session: Session, ids: list[int], epochs: list[int]) -> Context:
    """Return what pair samplers and losses may know at this step, with the keyed random draws of these samples."""
    index, epoch = (torch.as_tensor(numbers, device=session.device) for numbers in (ids, epochs))
    return Context(
        step=session.step,
        total_steps=session.total_steps,
        schedule=session.schedule,
        draws=KeyedDraws(session.recipe.seed, session.step, index, epoch),
        num_classes=session.recipe.shapes.num_classes,
        gather=session.world.gather,
        mean=session.world.mean,
    )


def make_batch(session: Session, ids: list[int], draws: Draws) -> Batch:
    """Fetch a batch and its targets, sample latent posteriors, then apply horizontal flips and label dropout."""
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
    extras: dict[str, torch.Tensor] = {}
    if isinstance(dataset, TargetDataset):
        targets = dataset.targets(ids, flipped.cpu())
        extras = {name: value.to(session.device, dtype, non_blocking=True) for name, value in targets.items()}
    return Batch(
        x0=x0,
        labels=labels,
        true_labels=true_labels,
        ids=torch.as_tensor(ids, device=session.device),
        flipped=flipped,
        extras=extras,
    )
