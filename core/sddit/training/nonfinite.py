"""Detect non-finite steps on all ranks."""

from __future__ import annotations

import torch
from torch import Tensor

from sddit.errors import Problem, SdditError
from sddit.training.inputs import step_samples
from sddit.training.session import Session
from sddit.training.step_metrics import BatchMetrics


def synchronize_step_status(
    session: Session, metrics: BatchMetrics, grad_norm: Tensor, used: list[bool]
) -> tuple[list[str], list[bool]]:
    """Agree with all ranks on the state of this step, in one message: the only device sync of a step.

    `used` says for each parameter of the root whether this rank has a gradient for it; it is empty without DDP. Returns
    the names of what is non-finite on any rank, and `used` of any rank. Stop signals are exchanged as well.
    """
    values = [(f"loss.{label}", value) for label, value in metrics.losses.items()]
    values.append(("gradient", grad_norm))
    for label, loss in session.student.terms.items():
        values += [(f"staged statistics of loss.{label}", tensor) for tensor in loss.staged()]
    own = ~torch.stack([torch.isfinite(tensor).all() for _, tensor in values])
    flags, used = session.world.synchronize_status(own, used)
    bad = (name for (name, _), flag in zip(values, flags.tolist(), strict=True) if flag)
    return list(dict.fromkeys(bad)), used


def discard_step(session: Session) -> None:
    """Drop the gradients, staged statistics and diagnostics of a step that is not taken."""
    session.optimizer.zero_grad(set_to_none=True)
    for loss in session.student.terms.values():
        loss.discard()
        loss.diagnostics()


class NonFinite(SdditError):
    """Raised for a non-finite step that the recipe does not allow to be skipped. The step changed nothing."""

    def __init__(self, session: Session, bad: list[str]) -> None:
        ids, _ = step_samples(session)
        skipped = f", after {len(session.skipped)} skipped steps" if session.skipped else ""
        self.bad = bad
        super().__init__(
            Problem(
                "SD-N501",
                f"non-finite values at step {session.step}{skipped}; the step was not applied",
                where=f"samples {', '.join(map(str, ids[:8]))}, ...",
                got=f"{', '.join(bad)}: non-finite",
                expect="finite losses and gradients",
                fix="lower optimizer.lr, set optimizer.clip, or train.precision=fp32; look at these samples",
            )
        )
