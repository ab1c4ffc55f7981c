"""Measure one step, and average measurements over a log interval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule

from sddit.training.session import NOISE_BINS, Session

GRADIENT_RATIO_EVERY = 100  # steps between measurements of each loss's part of the backbone's gradient


@dataclass(frozen=True, slots=True)
class BatchMetrics:
    """Measurements of a micro-batch or an entire batch, on the device."""

    losses: dict[str, Tensor]  # unweighted mean of each active loss
    binned: dict[str, Tensor]  # its sums by noise quarter, then counts, [2, NOISE_BINS]
    ratios: dict[str, float]  # gradient norm of each weighted loss on the backbone, divided by the first one's


@dataclass(frozen=True, slots=True)
class StepResult:
    """Measurements of one step, on the device."""

    metrics: BatchMetrics  # empty if the step was skipped
    grad_norm: Tensor
    taken: bool  # False: the step was skipped


def sum_metrics(parts: Sequence[BatchMetrics]) -> BatchMetrics:
    """Add up the metrics of the micro-batches of a batch; the gradient ratios are those of the first."""
    first = parts[0]
    return BatchMetrics(
        {label: sum((part.losses[label] for part in parts[1:]), start=first.losses[label]) for label in first.losses},
        {label: sum((part.binned[label] for part in parts[1:]), start=first.binned[label]) for label in first.binned},
        first.ratios,
    )


def gradient_ratios(session: Session, reduced: Mapping[str, Tensor], weights: Mapping[str, float]) -> dict[str, float]:
    """Return the gradient norm of each weighted loss on the backbone, divided by that of the first loss.

    They are measured every `GRADIENT_RATIO_EVERY` steps, and not with FSDP: its weights are in the graph only while
    gathered. A shorter run also measures its last step: at the first, a head that starts at zero has no gradient to the
    network.
    """
    is_due = session.step % GRADIENT_RATIO_EVERY == 0 or GRADIENT_RATIO_EVERY >= session.total_steps == session.step + 1
    if len(weights) < 2 or not is_due or isinstance(session.root, FSDPModule):
        return {}
    parameters = session.trained["backbone"]
    norms: dict[str, float] = {}
    for label, value in reduced.items():
        gradients = torch.autograd.grad(weights[label] * value, parameters, retain_graph=True, allow_unused=True)
        means = [session.world.mean(gradient) for gradient in gradients if gradient is not None]
        norms[label] = float(torch.nn.utils.get_total_norm(means))
    first, *others = norms
    return {label: norms[label] / norms[first] for label in others if norms[first] > 0}


def bin_by_noise(value: Tensor, t: Tensor, edges: Tensor) -> Tensor:
    """Return sums and counts of `value` [B] by noise quarter, [2, NOISE_BINS]."""
    index = torch.bucketize(t.to(edges.dtype), edges)
    sums = torch.zeros(2, NOISE_BINS, dtype=torch.float64, device=value.device)
    sums[0].index_add_(0, index, value.detach().to(torch.float64))
    sums[1].index_add_(0, index, torch.ones_like(value, dtype=torch.float64))
    return sums


def accumulate_metrics(session: Session, result: StepResult) -> None:
    """Add a step to the sums of the current log interval, on the device, without a device sync."""
    if not result.taken:
        return
    own = {"grad_norm": value_and_count(result.grad_norm)}
    for label, value in result.metrics.losses.items():
        own[f"loss/{label}"] = value_and_count(value)
        for name, diagnostic in session.student.terms[label].diagnostics().items():
            own[f"{label}/{name}"] = value_and_count(diagnostic)
    for label, sums in result.metrics.binned.items():
        for quarter, (total, count) in enumerate((sums * session.world.size).T):  # so that the mean is a sum over ranks
            own[f"loss/{label}@{quarter + 1}"] = value_and_count(total, count)
    for label, ratio in result.metrics.ratios.items():
        own[f"grad_ratio/{label}"] = value_and_count(torch.tensor(ratio))
    for name, mean in session.world.means(own).items():
        add_to_sums(session.sums, name, mean)


def value_and_count(value: Tensor, count: Tensor | None = None) -> Tensor:
    """Return [value, count] in float64; the count is 1 by default."""
    value = value.detach().to(torch.float64)
    return torch.stack([value, torch.ones_like(value) if count is None else count.to(value)])


def add_to_sums(sums: dict[str, Tensor], name: str, more: Tensor) -> None:
    sums[name] = sums[name] + more if name in sums else more


def log_row(session: Session) -> dict[str, float]:
    """Return the means of the current log interval and reset it. Performs one device sync."""
    names = list(session.sums)
    sums = torch.stack([session.sums[name].to(session.device) for name in names]).cpu()
    means = {name: total / count for name, (total, count) in zip(names, sums.tolist(), strict=True) if count > 0}
    session.sums = {}
    seconds = means.pop("seconds_per_step")
    weights = session.objective.weights(session.step - 1)
    row = {
        "step": float(session.step),
        "images": float(session.step * session.recipe.train.batch),
        "seconds": session.seconds,
        "images_per_second": session.recipe.train.batch / max(seconds, 1e-9),
        "lr": session.optimizer.param_groups[0]["lr"] / session.optimizer.param_groups[0]["lr_scale"],
    }
    if "grad_norm" in means:  # otherwise every step of the interval was skipped
        row["loss"] = sum(weight * means.get(f"loss/{label}", 0.0) for label, weight in weights.items())
    if session.recipe.train.skip_non_finite:
        row["skipped"] = float(len(session.skipped))
    return row | {f"weight/{label}": weight for label, weight in weights.items()} | means
