"""Detect non-finite steps on all ranks, and skip them or stop."""

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
    """Agree with all ranks on the state of this step, in one message: the only read of the device in a step.

    Args:
        session: before its update.
        metrics: the losses of this rank.
        grad_norm: norm of the gradient.
        used: for each parameter of the root, whether this rank has a gradient for it; empty without DDP.

    Returns:
        The names of what is non-finite on any rank, and `used` of any rank. Stop signals are exchanged as well.
    """
    values = {f"loss.{label}": [value] for label, value in metrics.losses.items()}
    values["gradient"] = [grad_norm]
    values |= {
        f"staged statistics of loss.{label}": list(loss.staged()) for label, loss in session.student.terms.items()
    }
    names = [name for name, tensors in values.items() for _ in tensors]
    own = ~torch.stack([torch.isfinite(tensor).all() for tensors in values.values() for tensor in tensors])
    flags, used = session.world.synchronize_status(own, used)
    if not bool(flags.any()):
        return [], used
    return list(dict.fromkeys(name for name, flag in zip(names, flags.tolist(), strict=True) if flag)), used


def discard_step(session: Session) -> None:
    """Drop the gradients, staged statistics and diagnostics of a step that is not taken."""
    session.optimizer.zero_grad(set_to_none=True)
    for loss in session.student.terms.values():
        loss.discard()
        loss.diagnostics()


def skip_step(session: Session, bad: list[str]) -> None:
    """Continue with the next step, nothing changed. Raises NonFinite if the recipe allows no more skipped steps."""
    allowed = session.recipe.train.skip_non_finite
    if len(session.skipped) == allowed:
        raise NonFinite(session, bad)
    session.skipped.append(session.step)
    session.step += 1


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
