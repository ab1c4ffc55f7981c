"""Prepare the inputs of a step: the batch and its context."""

from __future__ import annotations

import torch

from sddit.diffusion.draws import Draws
from sddit.interfaces import Batch, Context, DrawnDataset
from sddit.training.session import Session


def context_of(session: Session, draws: Draws) -> Context:
    """Return what pair samplers and losses may know at this step."""
    return Context(
        step=session.step,
        total_steps=session.total_steps,
        schedule=session.schedule,
        draws=draws,
        num_classes=session.recipe.shapes.num_classes,
        gather=session.world.gather,
        mean=session.world.mean,
    )


def make_batch(session: Session, ids: list[int], draws: Draws) -> Batch:
    """Fetch a batch, sample latent posteriors, then apply horizontal flips and label dropout."""
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
